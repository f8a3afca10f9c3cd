"""Every RPC and every HTTP route, called by everyone: what the servers answer, as one table.

The calls come from the contract's descriptors and from the gateway's app, so nothing that is served is left out.
"""

import asyncio
import importlib
import pkgutil
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import anthesis.v1
import grpc
import httpx
from anthesis.v1 import registry_pb2

from services.common.access import ROLES
from services.common.artifacts import ArtifactStore
from services.common.auth import RegistryAuthenticator
from services.gateway import access as gateway_access
from services.gateway.config import GatewayConfig
from services.gateway.server import Gateway
from services.inference.config import WorkerConfig
from services.inference.registry_client import RegistryClient
from services.inference.server import ACCESS as INFERENCE
from services.inference.server import build_server as build_inference
from services.inference.service import InferenceService
from services.inference.worker import Worker
from services.registry import access as registry_access
from services.registry.config import read_pepper
from services.registry.database import utc_now
from services.registry.keys import Keys
from services.tokenizer.registry_client import RegistryClient as TokenizerRegistryClient
from services.tokenizer.server import ACCESS as TOKENIZER
from services.tokenizer.server import build_server as build_tokenizer
from tests.support.registry_data import fresh_database
from tests.support.registry_server import RunningRegistry, running_registry

CALLERS = ("no key", "malformed", "unknown", "expired", "revoked", *ROLES)
OTHER_PROJECT = "another project's"  # a project's admin who names what is another project's; "–": nothing is named
TABLES = {  # the same that the servers are started with: they refuse others
    "RegistryService": registry_access.REGISTRY,
    "JobService": registry_access.JOBS,
    "LicenceService": registry_access.LICENCES,
    "EvaluationService": registry_access.EVALUATIONS,
    "ProjectService": registry_access.PROJECTS,
    "WebhookService": registry_access.WEBHOOKS,
    "FileService": registry_access.FILES,
    "GenerationService": gateway_access.GENERATION,
    "TokenizerService": TOKENIZER,
    "InferenceService": INFERENCE,
}
SERVED_BY = {
    "RegistryService": "registry",
    "JobService": "registry",
    "LicenceService": "registry",
    "EvaluationService": "registry",
    "ProjectService": "registry",
    "WebhookService": "registry",
    "FileService": "registry",
    "GenerationService": "gateway",
    "TokenizerService": "tokenizer",
    "InferenceService": "inference",
}
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
REACHES, UNAUTHENTICATED, DENIED = "yes", "401", "403"
_REFUSALS = {grpc.StatusCode.UNAUTHENTICATED: UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED: DENIED}

Headers = Mapping[str, str | None]  # caller -> its `authorization` header; None: sent without
Row = tuple[str, str, dict[str, str]]  # name, permission, caller -> answer


@dataclass(frozen=True, kw_only=True)
class Doors:
    """The platform's servers, and keys for all kinds of callers."""

    registry: RunningRegistry
    gateway: Gateway
    addresses: Mapping[str, str]  # registry, gateway, tokenizer, inference
    http_url: str
    headers: Headers


def services() -> list[Any]:
    """The descriptor of every service of the contract."""
    names = [found.name for found in pkgutil.iter_modules(anthesis.v1.__path__) if found.name.endswith("_pb2")]
    files = [importlib.import_module(f"anthesis.v1.{name}").DESCRIPTOR for name in sorted(names)]
    return [service for file in files for service in file.services_by_name.values()]


@asynccontextmanager
async def open_doors(folder: Path) -> AsyncIterator[Doors]:
    """All four servers as they run in production, over one registry; the inference worker holds no model."""
    async with AsyncExitStack() as stack:
        url = await asyncio.to_thread(fresh_database, "sqlite", folder)  # migrated once for all tests of a run
        registry = await stack.enter_async_context(running_registry(data_dir=folder, database_url=url))
        addresses = {"registry": registry.address}

        def authenticator(service: str) -> RegistryAuthenticator:
            made = RegistryAuthenticator(registry.address, registry.keys[service])
            stack.push_async_callback(made.close)
            return made

        verify = authenticator("tokenizer")
        projects = TokenizerRegistryClient(registry.address, registry.keys["tokenizer"])
        stack.push_async_callback(projects.close)
        tokenizer = build_tokenizer(
            "127.0.0.1:0", registry.artifacts, verify, on_denied=verify.report_denied, registry=projects
        )
        addresses["tokenizer"] = f"127.0.0.1:{await tokenizer.start()}"
        stack.push_async_callback(tokenizer.stop, 0)
        verify = authenticator("inference")
        client = RegistryClient(registry.address, registry.keys["inference"])
        stack.push_async_callback(client.close)
        store = ArtifactStore(registry.platform.artifacts_url, folder / "cache" / "worker")
        worker = Worker(client, store, folder / "models", WorkerConfig(), worker_id="w1", address="127.0.0.1:1")
        inference = build_inference("127.0.0.1:0", InferenceService(worker), verify, verify.report_denied)
        addresses["inference"] = f"127.0.0.1:{await inference.start()}"
        stack.push_async_callback(inference.stop, 0)
        gateway = Gateway(
            GatewayConfig(
                address="127.0.0.1:0",
                http_address="127.0.0.1:0",
                registry_address=registry.address,
                tokenizer_address=addresses["tokenizer"],
                service_key=registry.keys["gateway"],
            )
        )
        port, http_port = await gateway.start()
        stack.push_async_callback(gateway.stop)
        addresses["gateway"] = f"127.0.0.1:{port}"
        yield Doors(
            registry=registry,
            gateway=gateway,
            addresses=addresses,
            http_url=f"http://127.0.0.1:{http_port}",
            headers=await make_keys(registry),
        )


async def make_keys(registry: RunningRegistry) -> dict[str, str | None]:
    pepper = read_pepper(registry.data_dir, {})
    keys = Keys(registry.database, pepper)
    made = {role: (await keys.create(f"the-{role}", role))[1] for role in ROLES}
    yesterday = utc_now() - timedelta(days=1)
    past = Keys(registry.database, pepper, lambda: yesterday)
    made["expired"] = (await past.create("late", "admin", expire_time=yesterday + timedelta(hours=1)))[1]
    key, made["revoked"] = await keys.create("gone", "admin")
    await keys.revoke(key.id)
    made["unknown"] = "an_" + "0" * 43
    headers: dict[str, str | None] = {name: f"Bearer {secret}" for name, secret in made.items()}
    return headers | {"no key": None, "malformed": made["admin"]}  # a right key, but not said to be one


async def measure(doors: Doors) -> list[Row]:
    rows: list[Row] = []
    async with AsyncExitStack() as stack:
        channels = {
            name: await stack.enter_async_context(grpc.aio.insecure_channel(address))
            for name, address in doors.addresses.items()
        }
        for service in services():
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                channel = channels[SERVED_BY[service.name]]
                kind = tuple(bool(flag) for flag in (method.client_streaming, method.server_streaming))
                permission = TABLES[service.name][method.name]
                rows.append(
                    (f"`{service.name}.{method.name}`", permission, await ask_grpc(doors.headers, channel, path, kind))
                )
        for name in doors.addresses:
            for path, kind in ((HEALTH, (False, False)), (REFLECTION, (True, True))):
                needs = "–" if path == HEALTH else "any key"
                called = path.rpartition(".")[2].replace("/", ".")
                rows.append((f"`{called}` ({name})", needs, await ask_grpc(doors.headers, channels[name], path, kind)))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=doors.http_url, timeout=30))
        for route in sorted(doors.gateway.app.routes):
            needs = gateway_access.HTTP[route] or "–"
            rows.append((f"`{route}`", needs, await ask_http(doors.headers, http, route)))
    return rows


async def ask_grpc(headers: Headers, channel: Any, path: str, kind: tuple[bool, bool]) -> dict[str, str]:
    """What each caller is answered to an empty request: whatever is wrong with that, who may call is decided before."""
    request = b""
    if path.endswith("/Authenticate"):  # an empty secret is answered like a caller without a key
        secret = str(headers["admin"]).removeprefix("Bearer ")
        request = registry_pb2.AuthenticateRequest(secret=secret).SerializeToString()
    answers = await asyncio.gather(*(answer(channel, path, kind, request, header) for header in headers.values()))
    return dict(zip(headers, answers, strict=True))


async def answer(channel: Any, path: str, kind: tuple[bool, bool], request: bytes, header: str | None) -> str:
    names = {False: "unary", True: "stream"}
    call = getattr(channel, f"{names[kind[0]]}_{names[kind[1]]}")(path)(
        iter([request]) if kind[0] else request,
        metadata=(("authorization", header),) if header else None,
        timeout=30,
    )
    try:
        if kind[1]:
            async for _ in call:
                break
            call.cancel()
        else:
            await call
    except grpc.aio.AioRpcError as error:
        if error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL):
            raise  # no verdict on the caller
        return _REFUSALS.get(error.code(), REACHES)
    return REACHES


async def ask_http(headers: Headers, http: httpx.AsyncClient, route: str) -> dict[str, str]:
    method, path = route.split(" ")
    answers = {}
    for caller, header in headers.items():
        sent = {"authorization": header} if header else {}
        named = re.sub(r"{.*?}", "nobody", path)
        got = await http.request(method, named, headers=sent)
        assert got.status_code in (200, 400, 401, 403, 404), (route, got.text)
        answers[caller] = str(got.status_code) if got.status_code in (401, 403) else REACHES
    return answers


def render(rows: list[Row]) -> str:
    """The table in Markdown."""
    callers = (*CALLERS, OTHER_PROJECT)
    lines = [" | ".join(("", "call", "needs", *callers, "")).strip(), "|---" * (len(callers) + 2) + "|"]
    for name, needs, answers in rows:
        lines.append(" | ".join(("", name, needs, *(answers.get(caller, "–") for caller in callers), "")).strip())
    return "\n".join(lines)
