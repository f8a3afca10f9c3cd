"""The audit log."""

from collections.abc import AsyncGenerator
from datetime import datetime

import grpc

from anthesis.keys import to_timestamp
from anthesis.rpc import PAGE_SIZE, pages
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub


class Audit:
    """Who changed what, and who was refused what; needs an admin's key."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = RegistryServiceStub(channel)

    async def list(
        self,
        *,
        principal: str = "",
        action: str = "",
        resource: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> AsyncGenerator[pb.AuditEntry, None]:
        """Entries, newest first, a page at a time. `action` is for example "RegistryService.SetAlias", `resource`
        "alias/production"; from `since` on, before `until`.
        """
        request = pb.ListAuditEntriesRequest(
            principal=principal,
            action=action,
            resource=resource,
            start_time=to_timestamp(since),
            end_time=to_timestamp(until),
            page_size=PAGE_SIZE,
        )
        async for page in pages(self._stub.ListAuditEntries, request):
            for entry in page.entries:
                yield entry
