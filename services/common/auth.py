"""Who calls: an API key in `authorization: Bearer …`, verified by the registry."""

import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import grpc
from anthesis.channel import open_aio_channel
from anthesis.v1 import registry_pb2, registry_pb2_grpc

from services.common.access import Permission, rights, roles_with
from services.common.errors import PermissionDenied, Unauthenticated, Unavailable

FRESH_S = 55.0  # a revoked key works this long at most while the registry is up; in a stream CHECK_S more
STALE_S = 900.0  # and this long while it is down
MAX_CACHED_KEYS = 10_000
REPORT_TIMEOUT_S = 2.0
PROJECT_HEADER = "x-anthesis-project"  # metadata by which a service says for which project it calls
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a key belongs to, and what the key may do: all that `role` may, or of that only `scopes`."""

    key_id: str
    name: str
    role: str  # a key of services.common.access.ROLES
    scopes: frozenset[str] = frozenset()  # permissions; empty: no limit
    expire_time: datetime | None = None
    project: str = ""  # whose rows it works on; "": the whole platform

    @property
    def rights(self) -> frozenset[Permission]:
        return rights(self.role, self.scopes, self.project)

    @property
    def is_service(self) -> bool:
        """A part of the platform, which acts for whoever it serves and accepts no licences itself."""
        return self.role == "service"


@dataclass(frozen=True, slots=True)
class Call:
    """What is being done, and for whom: "RegistryService.SetAlias", "POST /v1/completions"."""

    principal: Principal
    action: str


Authenticate = Callable[[str], Awaitable[Principal]]
"""Secret -> principal. Raises Unauthenticated for a key that is nobody's."""

OnDenied = Callable[[Call, str], Awaitable[None]]
"""Notes that a call, on the resource named by the request ("" where it names none), was refused for want of rights."""

PLATFORM = Principal("", "platform", "service")  # whoever works without having been called
_call: ContextVar[Call] = ContextVar("call")


def current_call() -> Call:
    """The call that is being handled; outside of any, the platform's own work."""
    return _call.get(Call(PLATFORM, ""))


def current_principal() -> Principal:
    """Who makes the call that is being handled."""
    return _call.get().principal


def current_project() -> str:
    """For which project that is; "" for the whole platform."""
    return current_call().principal.project


@contextmanager
def acting_for(project: str) -> Iterator[None]:
    """Within, whoever calls does so for `project`; "": as without."""
    before = current_call()
    if project:
        set_call(replace(before, principal=replace(before.principal, project=project)))
    try:
        yield
    finally:
        set_call(before)


def project_metadata() -> tuple[tuple[str, str], ...]:
    """What a service sends along, so that another one answers it as it would answer the caller's project."""
    project = current_project()
    return ((PROJECT_HEADER, project),) if project else ()


def in_named_project(principal: Principal, project: str | None) -> Principal:
    """Who calls for the project in PROJECT_HEADER: services alone may say so, of others it is left unread."""
    return replace(principal, project=project) if project and principal.is_service else principal


def set_call(call: Call) -> None:
    """Make `call` what this context handles."""
    _call.set(call)


def check_permission(call: Call, permission: Permission) -> None:
    """Raise PermissionDenied, naming who could, unless the caller's key may do this."""
    principal = call.principal
    if permission in principal.rights:
        return
    who = f"{principal.name!r} has role {principal.role!r}"
    if principal.scopes:
        who += f" and this key only the scopes {', '.join(sorted(principal.scopes))}"
    if principal.project:
        who += f", in project {principal.project!r}"
    raise PermissionDenied(
        f"{who}; {call.action} needs the permission {permission.value!r} (roles {', '.join(roles_with(permission))}): "
        "ask an admin for such a key"
    )


def check_not_expired(principal: Principal, now: datetime) -> None:
    """Raise Unauthenticated, saying what to do, when the key's time is over."""
    if principal.expire_time and principal.expire_time <= now:
        when = principal.expire_time.isoformat(timespec="seconds")
        raise Unauthenticated(f"the API key expired at {when}; ask an admin for a new one")


async def report_denial(on_denied: OnDenied | None, resource: str) -> None:
    """Tell `on_denied` of the current call. That it cannot be told changes nothing for the caller."""
    if on_denied is None:
        return
    call = current_call()
    try:
        await on_denied(call, resource)
    except Exception as error:
        log.warning("%s refused to %s is not in the audit log: %s", call.action, call.principal.key_id, error)


def bearer_key(header: str | None) -> str:
    """The key in an `Authorization` header. Raises Unauthenticated, saying what to send."""
    scheme, _, key = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthenticated("no API key: send `authorization: Bearer <key>`")
    return key.strip()


class RegistryAuthenticator:
    """An `Authenticate` that asks the registry and remembers the answer (by the key's hash) for a minute.

    While the registry is down, an answer of the last quarter of an hour still counts, but never past the key's expiry.
    """

    def __init__(
        self, registry_address: str, service_key: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._address = registry_address
        self._service_key = service_key
        self._clock = clock
        self._stub: registry_pb2_grpc.RegistryServiceAsyncStub | None = None
        self._seen: dict[bytes, tuple[float, Principal]] = {}

    async def __call__(self, secret: str) -> Principal:
        name = hashlib.sha256(secret.encode()).digest()
        now = time.monotonic()
        seen = self._seen.get(name)
        if seen:
            check_not_expired(seen[1], self._clock())
            if now - seen[0] < FRESH_S:
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

    async def report_denied(self, call: Call, resource: str) -> None:
        """An `OnDenied` that writes to the registry's audit log."""
        request = registry_pb2.ReportDenialRequest(
            key_id=call.principal.key_id, action=call.action, resource=resource[:200]
        )
        await self._registry().ReportDenial(request, timeout=REPORT_TIMEOUT_S)

    async def close(self) -> None:
        if self._stub is not None:
            await self._channel.close()

    def _registry(self) -> "registry_pb2_grpc.RegistryServiceAsyncStub":
        if self._stub is None:  # here and not in __init__: a channel belongs to the running event loop
            self._channel = open_aio_channel(self._address, self._service_key)  # a stub alone does not keep it open
            self._stub = registry_pb2_grpc.RegistryServiceStub(self._channel)
        return self._stub

    async def _ask(self, secret: str) -> Principal:
        request = registry_pb2.AuthenticateRequest(secret=secret)
        return principal_from_proto(await self._registry().Authenticate(request, timeout=5))


def principal_from_proto(answer: registry_pb2.AuthenticateResponse) -> Principal:
    """A role or scope of a newer contract is one that nobody here knows: it gives no right."""
    return Principal(
        answer.key_id,
        answer.principal,
        _name(registry_pb2.Role, answer.role, "ROLE_"),
        frozenset(_name(registry_pb2.Permission, scope, "PERMISSION_") for scope in answer.scopes),
        answer.expire_time.ToDatetime(UTC) if answer.HasField("expire_time") else None,
        answer.project,
    )


def _name(enum: Any, number: int, prefix: str) -> str:
    return str(enum.Name(number)).removeprefix(prefix).lower() if number in enum.values() else "unknown"
