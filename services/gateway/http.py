"""OpenAI-compatible HTTP: routes that translate."""

import asyncio
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from services.common.access import Permission, check_complete
from services.common.auth import (
    PROJECT_HEADER,
    Authenticate,
    Call,
    OnDenied,
    bearer_key,
    check_permission,
    current_principal,
    in_named_project,
    report_denial,
    set_call,
)
from services.common.errors import DomainError, PermissionDenied
from services.common.key_end import CHECK_S, KeyEnd
from services.gateway import access
from services.gateway.completions import Completions
from services.gateway.event_stream import EventStream, events
from services.gateway.fine_tuning_routes import MAX_FILE_BYTES, UPLOAD, add_fine_tuning
from services.gateway.fine_tuning_service import FineTuning
from services.gateway.metering import LANGUAGE_HEADER, set_language
from services.gateway.openai_completions import CompletionBody, CompletionWriter, model_json
from services.gateway.openai_embeddings import EmbeddingBody
from services.gateway.openai_errors import domain_error_json, error_json, retry_after
from services.gateway.registry_client import ListedModel, RegistryClient
from services.gateway.routing import Router
from services.gateway.service import GatewayService, OpenModel

MAX_BODY_BYTES = 16 << 20  # 128 prompts of 2,048 tokens are about 1.5 MB
T = TypeVar("T")
_HTTP_CODES = {404: "unknown_url", 405: "method_not_allowed"}


def build_app(
    service: GatewayService,
    router: Router,
    registry: RegistryClient,
    fine_tuning: FineTuning,
    authenticate: Authenticate,
    on_denied: OnDenied | None = None,
    check_keys_s: float = CHECK_S,
) -> "Admission":
    completions = Completions(service)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, max_body_size=MAX_BODY_BYTES)
    app.add_exception_handler(DomainError, _on_domain_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientGone, _on_client_gone)
    app.add_exception_handler(ClientDisconnect, _on_client_gone)
    app.add_exception_handler(Exception, _on_our_error)

    add_fine_tuning(app, fine_tuning)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model_json(model) for model in await registry.list_models()]}

    @app.get("/v1/models/{name:path}")
    async def get_model(name: str) -> dict[str, Any]:
        return model_json(ListedModel(name, (await router.resolve(name)).created_s))

    @app.post("/v1/completions")
    async def complete(body: CompletionBody, request: Request) -> Response:
        principal = current_principal()
        completion = await completions.start(principal, body.to_request(principal.key_id))
        headers = {"x-anthesis-machine-generated": "true"} | _licences(completion.model)
        writer = CompletionWriter(completion)
        if not body.stream:
            choices = await _unless_disconnected(request, completions.collect(completion))
            return JSONResponse(writer.whole(choices), headers=headers)
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        secret = bearer_key(request.headers.get("authorization"))
        key = KeyEnd(authenticate, secret, principal, check_s=check_keys_s)
        stream = events(key.limit(completions.stream(completion)), writer, with_usage=with_usage)
        # The first event is awaited here, so that an error before it has a status of its own.
        return EventStream(await _unless_disconnected(request, anext(stream)), stream, headers)

    @app.post("/v1/embeddings")
    async def embed(body: EmbeddingBody, request: Request) -> Response:
        inputs, caller = body.inputs(), body.caller(current_principal().key_id)
        model = await service.open_for(current_principal(), body.model)
        embedded = await _unless_disconnected(request, service.embed(model, inputs, body.how(), caller))
        return JSONResponse(body.answer(model.version, embedded), headers=_licences(model))

    return Admission(app, access.HTTP, authenticate, on_denied)


def _licences(model: OpenModel) -> dict[str, str]:
    return {"x-anthesis-licences": ", ".join(model.resolved.licences)}


class Admission:
    """Lets nothing but /health through without a valid key, not even to learn which routes exist, nor a huge body.

    `table` says what each route needs (None: not even a key). Raises RuntimeError when it leaves out one of them.
    """

    def __init__(
        self,
        app: FastAPI,
        table: Mapping[str, Permission | None],
        authenticate: Authenticate,
        on_denied: OnDenied | None = None,
    ) -> None:
        self.routes = dict(_named_routes(app))
        check_complete("gateway (HTTP)", self.routes, table)
        self._app = app
        self._table = table
        self._authenticate = authenticate
        self._on_denied = on_denied

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = await self._refusal(Request(scope)) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    async def _refusal(self, request: Request) -> Response | None:
        matches = (name for name, route in self.routes.items() if route.matches(request.scope)[0] is Match.FULL)
        name = next(matches, None)  # None: no such route, of which the app tells whoever has a key
        if name and self._table[name] is None:
            return None
        try:
            await self._admit(name, request)
        except DomainError as error:
            if isinstance(error, PermissionDenied):
                await report_denial(self._on_denied, "")
            return _error_response(error)
        num_bytes = int(request.headers.get("content-length", 0))  # the server has checked that it is a number
        most = MAX_FILE_BYTES if name == UPLOAD else MAX_BODY_BYTES
        if num_bytes > most:
            message = f"the body has {num_bytes} bytes; send at most {most}"
            return JSONResponse(error_json(message, "invalid_request_error"), 413)
        return None

    async def _admit(self, name: str | None, request: Request) -> None:
        principal = await self._authenticate(bearer_key(request.headers.get("authorization")))
        principal = in_named_project(principal, request.headers.get(PROJECT_HEADER))
        call = Call(principal, name or request.method)
        set_call(call)
        set_language(request.headers.get(LANGUAGE_HEADER))
        permission = self._table[name] if name else None
        if permission:
            check_permission(call, permission)


def _named_routes(app: FastAPI) -> Iterator[tuple[str, Route]]:
    """("GET /v1/models", its route), …"""
    for route in app.routes:
        if not isinstance(route, Route) or not route.methods:
            raise RuntimeError(f"{route} is no plain route, so no table of access can name it; add it with @app.get, …")
        for method in route.methods:
            yield f"{method} {route.path}", route


class ClientGone(Exception):
    """The client closed the connection before there was an answer."""


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away. Raises ClientGone then."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnection(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return await working
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error_response(error: DomainError) -> JSONResponse:
    status, body = domain_error_json(error)
    return JSONResponse(body, status, retry_after(error))


async def _on_domain_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DomainError)
    return _error_response(error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return JSONResponse(error_json(f"the body is not JSON: {first['ctx']['error']}", "invalid_request_error"), 400)
    param = str(first["loc"][1]) if len(first["loc"]) > 1 else None
    if first["type"] == "extra_forbidden":
        message = f"unrecognized request argument: {'.'.join(map(str, first['loc'][1:]))}"
    elif first["type"] == "missing":
        message = f"{param or 'a JSON body'} is missing"
    else:
        reasons = {problem["msg"] for problem in error.errors() if problem["loc"][1:2] == first["loc"][1:2]}
        message = f"{param or 'body'}={first['input']!r:.100} is not allowed: {'; or '.join(sorted(reasons))}"
    return JSONResponse(error_json(message, "invalid_request_error", param=param), 400)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    code = _HTTP_CODES.get(error.status_code)
    return JSONResponse(error_json(message, "invalid_request_error", code=code), error.status_code, error.headers)


async def _on_client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's "client closed request"; nobody reads it


async def _on_our_error(request: Request, error: Exception) -> Response:
    return JSONResponse(error_json("internal error; the gateway's log has the traceback", "server_error"), 500)
