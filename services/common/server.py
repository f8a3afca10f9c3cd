"""A gRPC server as every service runs it: health, reflection, keys, error mapping, draining."""

import asyncio
import logging
import math
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from anthesis.channel import OPTIONS
from google.protobuf.descriptor_pool import Default
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.common.access import Access, Permission, check_complete
from services.common.auth import (
    PROJECT_HEADER,
    Authenticate,
    Call,
    OnDenied,
    bearer_key,
    check_permission,
    in_named_project,
    report_denial,
    set_call,
)
from services.common.errors import DomainError, PermissionDenied, ResourceExhausted
from services.common.key_end import CHECK_S, KeyEnd

RETRY_PUSHBACK = "grpc-retry-pushback-ms"  # trailing metadata; gRPC's own retries heed it (proposal A6)
_OPEN = "/grpc.health.v1.Health/"
_REFLECTION = "/grpc.reflection."
_PACKAGE = "/anthesis.v1."
_IDENTIFIERS = ("name", "id", "digest", "model", "version", "deployment", "job_id", "principal", "model_version")
_Context = grpc.aio.ServicerContext[Any, Any]
CheckRequest = Callable[[Call, Any], Awaitable[None]]
"""Raises for a request that the caller may not make, although it may make the call."""
log = logging.getLogger(__name__)


class GrpcServer:
    """grpc.aio server with health, reflection, authentication and error mapping.

    Health needs no key, reflection any; every other RPC what its service's table of access says. `on_denied` is told of
    each call that was refused for want of rights. `check` sees every request that is not a stream. A stream ends with
    its key, which is verified again every `check_keys_s` seconds.
    """

    def __init__(
        self,
        name: str,
        address: str,
        *,
        authenticate: Authenticate,
        on_denied: OnDenied | None = None,
        check: CheckRequest | None = None,
        check_keys_s: float = CHECK_S,
    ) -> None:
        self._name = name
        self._address = address
        self._edge = _Edge(authenticate, on_denied, check, check_keys_s)
        self._adders: list[tuple[Callable[[Any, grpc.aio.Server], None], Any, str]] = []
        self._server: grpc.aio.Server | None = None
        self._health = health.aio.HealthServicer()

    def add(
        self, add_servicer: Callable[[Any, grpc.aio.Server], None], servicer: Any, full_name: str, access: Access
    ) -> None:
        """Serve `servicer`, registered by the generated `add_servicer`, as `full_name` ("anthesis.v1.X").

        Raises RuntimeError when `access` leaves out one of its RPCs.
        """
        check_complete(full_name, (rpc.name for rpc in Default().FindServiceByName(full_name).methods), access)
        self._edge.access.update({f"/{full_name}/{rpc}": permission for rpc, permission in access.items()})
        self._adders.append((add_servicer, servicer, full_name))

    async def start(self) -> int:
        """Listen; return the bound port. Raises OSError when the port is taken."""
        # so_reuseport off: a second server on the same port must fail, not share its calls.
        server = grpc.aio.server(interceptors=[self._edge], options=[*OPTIONS, ("grpc.so_reuseport", 0)])
        for add_servicer, servicer, _ in self._adders:
            add_servicer(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [full_name for _, _, full_name in self._adders]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
        try:
            port = server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise OSError(f"{self._name} cannot listen on {self._address}: is the port taken?") from error
        await server.start()
        self._server = server
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        log.info("%s listens on %s", self._name, self._address)
        return port

    async def set_serving(self, serving: bool) -> None:
        """Say SERVING or NOT_SERVING to who asks for health."""
        status = health_pb2.HealthCheckResponse
        await self._set_health(status.SERVING if serving else status.NOT_SERVING)

    async def _set_health(self, status: Any) -> None:
        for name in ("", *(full_name for _, _, full_name in self._adders)):
            await self._health.set(name, status)

    async def stop(self, grace_s: float = 10.0) -> None:
        """Say NOT_SERVING, refuse new calls, give those under way `grace_s` seconds."""
        if self._server is None:
            return
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.stop(grace_s)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain."""
        await self.start()
        await wait_for_signal()
        await self.stop()


async def wait_for_signal() -> None:
    """Return at the first SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await stopping.wait()


class _Edge(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Authenticates each call and turns what it raises into a status."""

    def __init__(
        self, authenticate: Authenticate, on_denied: OnDenied | None, check: CheckRequest | None, check_keys_s: float
    ) -> None:
        self._authenticate = authenticate
        self._on_denied = on_denied
        self._check = check
        self._check_keys_s = check_keys_s
        self.access: dict[str, Permission] = {}  # by full method: "/anthesis.v1.RegistryService/SetAlias"

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(details)
        if handler is None or details.method.startswith(_OPEN):
            return handler
        return self._wrap(handler, details.method)

    def _wrap(self, handler: Any, method: str) -> Any:
        """The same handler, of the same one of gRPC's four kinds, with admission before and error mapping around it."""
        names = {False: "unary", True: "stream"}
        kind = f"{names[handler.request_streaming]}_{names[handler.response_streaming]}"
        inner = getattr(handler, kind)
        respond: Callable[..., Any]
        if handler.response_streaming:

            async def respond(request: Any, context: _Context) -> AsyncIterator[Any]:
                async for response in self._respond_stream(inner, method, request, context):
                    yield response
        else:

            async def respond(request: Any, context: _Context) -> Any:
                return await self._respond_unary(inner, method, request, context)

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(respond, handler.request_deserializer, handler.response_serializer)

    async def _respond_unary(self, inner: Callable[..., Any], method: str, request: Any, context: _Context) -> Any:
        try:
            key = await self._admit(method, request, context)
            if isinstance(request, Message):
                return await inner(request, context)
            async with key:  # a stream of requests
                return await key.meanwhile(inner(request, context))
        except Exception as error:
            await self._fail(context, method, request, error)

    async def _respond_stream(
        self, inner: Callable[..., Any], method: str, request: Any, context: _Context
    ) -> AsyncIterator[Any]:
        try:
            key = await self._admit(method, request, context)
            async with aclosing(key.limit(inner(request, context))) as responses:
                async for response in responses:
                    yield response
        except Exception as error:
            await self._fail(context, method, request, error)

    async def _admit(self, method: str, request: Any, context: _Context) -> KeyEnd:
        sent = dict(context.invocation_metadata() or ())
        metadata = {name: value for name, value in sent.items() if isinstance(value, str)}
        secret = bearer_key(metadata.get("authorization"))
        principal = in_named_project(await self._authenticate(secret), metadata.get(PROJECT_HEADER))
        call = Call(principal, method.removeprefix(_PACKAGE).replace("/", "."))
        set_call(call)
        if not method.startswith(_REFLECTION):
            check_permission(call, self.access[method])
        if self._check and isinstance(request, Message):
            await self._check(call, request)
        return KeyEnd(self._authenticate, secret, principal, check_s=self._check_keys_s)

    async def _fail(self, context: _Context, method: str, request: Any, error: Exception) -> None:
        if isinstance(error, PermissionDenied):
            await report_denial(self._on_denied, identifier_of(request))
        await _abort(context, method, error)


def identifier_of(request: Any) -> str:
    """What a request is about, by its name or id; "" where it names nothing, as the stream of an upload."""
    for field in _IDENTIFIERS:
        value = getattr(request, field, "")
        if isinstance(value, Message):
            value = getattr(value, "name", "") or getattr(value, "model", "")
        if isinstance(value, str) and value:
            return value
    return ""


async def _abort(context: _Context, method: str, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, DomainError):
        delay_s = error.retry_delay_s if isinstance(error, ResourceExhausted) else None
        trailing = () if delay_s is None else ((RETRY_PUSHBACK, str(math.ceil(delay_s * 1000))),)
        await context.abort(error.status, str(error), trailing)
    if isinstance(error, grpc.aio.AioRpcError):  # a call to another service failed: its status is the answer
        await context.abort(error.code(), error.details() or "")
    log.error("%s failed", method, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, f"internal error in {method}; the service's log has the traceback")
