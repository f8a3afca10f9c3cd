"""What the gateway asks the registry about licences: may this principal use that version?"""

import grpc
from anthesis.v1 import licence_pb2 as pb
from anthesis.v1 import licence_pb2_grpc as pb_grpc

from services.common.auth import Principal
from services.common.errors import FailedPrecondition
from services.gateway.memo import Memo
from services.gateway.upstream import upstream

TIMEOUT_S = 10.0
MAX_PAIRS = 10_000


class LicenceNotAccepted(FailedPrecondition):
    """The caller has still to accept a licence; the message says which, what it forbids, and how to accept it."""


class LicenceClient:
    """Remembers for `ttl_s` that a principal may use a version, and never that it may not: accepting counts at once."""

    def __init__(self, channel: grpc.aio.Channel, address: str, *, ttl_s: float) -> None:
        self._stub: pb_grpc.LicenceServiceAsyncStub = pb_grpc.LicenceServiceStub(channel)
        self._name = f"the registry at {address}"
        self._accepted = Memo(self._ask, max_size=MAX_PAIRS, ttl_s=ttl_s)

    async def require_acceptance(self, principal: Principal, version: str) -> None:
        """Raises LicenceNotAccepted. Of a service its principal's user was asked, as the job was submitted."""
        if principal.is_service:
            return
        await self._accepted.get((principal.name, version))

    async def _ask(self, pair: tuple[str, str]) -> None:
        principal, version = pair
        request = pb.CheckAcceptanceRequest(principal=principal, version=version)
        with upstream(self._name):
            answer = await self._stub.CheckAcceptance(request, timeout=TIMEOUT_S)
        if answer.refusal:
            raise LicenceNotAccepted(answer.refusal)
