"""API keys."""

from collections.abc import Iterable, Sequence
from datetime import datetime

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from anthesis.rpc import PAGE_SIZE, pages, unary
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub


class Keys:
    """Makes and revokes API keys; needs an admin's."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = RegistryServiceStub(channel)

    async def create(
        self,
        principal: str,
        role: "pb.Role.ValueType" = pb.ROLE_USER,
        *,
        label: str = "",
        scopes: Iterable["pb.Permission.ValueType"] = (),
        expire_time: datetime | None = None,
        project: str = "",
    ) -> pb.CreateApiKeyResponse:
        """A new key; its `secret` is shown this once. With `scopes` it may do these alone of what its role may.
        It is of the caller's project, or of the one that a platform admin names.

        Raises PermissionDeniedError when it could do more than the key it is made with, or would outlive it.
        """
        request = pb.CreateApiKeyRequest(
            principal=principal,
            role=role,
            label=label,
            scopes=scopes,
            expire_time=to_timestamp(expire_time),
            project=project,
        )
        return await unary(self._stub.CreateApiKey(request))

    async def list(self) -> Sequence[pb.ApiKey]:
        request = pb.ListApiKeysRequest(page_size=PAGE_SIZE)
        return [key async for page in pages(self._stub.ListApiKeys, request) for key in page.keys]

    async def revoke(self, key_id: str) -> pb.ApiKey:
        """Raises NotFoundError."""
        return (await unary(self._stub.RevokeApiKey(pb.RevokeApiKeyRequest(id=key_id)))).key


def to_timestamp(time: datetime | None) -> Timestamp | None:
    """A time without a zone is one of this machine's."""
    if time is None:
        return None
    message = Timestamp()
    message.FromDatetime(time.astimezone())
    return message
