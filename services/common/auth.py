"""Who calls: an API key in `authorization: Bearer …`, verified by the registry."""

import hashlib
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass

import grpc
from anthesis.channel import open_aio_channel
from anthesis.v1 import registry_pb2, registry_pb2_grpc

from services.common.errors import Unauthenticated, Unavailable

ANYONE = frozenset({"user", "admin", "service"})
INTERNAL = frozenset({"service", "admin"})
ADMIN = frozenset({"admin"})

FRESH_S = 60.0  # a revoked key works this long at most while the registry is up
STALE_S = 900.0  # and this long while it is down
MAX_CACHED_KEYS = 10_000

_ROLES = {
    registry_pb2.ROLE_USER: "user",
    registry_pb2.ROLE_ADMIN: "admin",
    registry_pb2.ROLE_SERVICE: "service",
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a key belongs to. `role` is "user", "admin" or "service"."""

    key_id: str
    name: str
    role: str

    @property
    def is_service(self) -> bool:
        """A part of the platform, which acts for whoever it serves and accepts no licences itself."""
        return self.role == "service"


Authenticate = Callable[[str], Awaitable[Principal]]
"""Secret -> principal. Raises Unauthenticated for a key that is nobody's."""

_principal: ContextVar[Principal] = ContextVar("principal")


def current_principal() -> Principal:
    """Who makes the call that is being handled."""
    return _principal.get()


def set_principal(principal: Principal) -> None:
    """Make `principal` the caller of what this context handles."""
    _principal.set(principal)


def bearer_key(header: str | None) -> str:
    """The key in an `Authorization` header. Raises Unauthenticated, saying what to send."""
    scheme, _, key = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthenticated("no API key: send `authorization: Bearer <key>`")
    return key.strip()


class RegistryAuthenticator:
    """An `Authenticate` that asks the registry and remembers the answer (by the key's hash) for a minute.

    While the registry is down, an answer of the last quarter of an hour still counts.
    """

    def __init__(self, registry_address: str, service_key: str) -> None:
        self._address = registry_address
        self._service_key = service_key
        self._stub: registry_pb2_grpc.RegistryServiceAsyncStub | None = None
        self._seen: dict[bytes, tuple[float, Principal]] = {}

    async def __call__(self, secret: str) -> Principal:
        name = hashlib.sha256(secret.encode()).digest()
        now = time.monotonic()
        seen = self._seen.get(name)
        if seen and now - seen[0] < FRESH_S:
            return seen[1]
        try:
            principal = await self._ask(secret)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                self._seen.pop(name, None)
                raise Unauthenticated(error.details() or "unknown API key") from None
            if seen and now - seen[0] < STALE_S:
                return seen[1]
            raise Unavailable(f"the registry at {self._address} cannot verify the API key now; try again") from error
        if len(self._seen) >= MAX_CACHED_KEYS:
            self._seen.clear()
        self._seen[name] = (now, principal)
        return principal

    async def _ask(self, secret: str) -> Principal:
        if self._stub is None:  # here and not in __init__: a channel belongs to the running event loop
            self._channel = open_aio_channel(self._address, self._service_key)  # a stub alone does not keep it open
            self._stub = registry_pb2_grpc.RegistryServiceStub(self._channel)
        answer = await self._stub.Authenticate(registry_pb2.AuthenticateRequest(secret=secret), timeout=5)
        return Principal(answer.key_id, answer.principal, _ROLES.get(answer.role, "user"))
