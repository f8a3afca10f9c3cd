"""The edge every service shares: keys, roles, error mapping, health."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from anthesis.channel import open_aio_channel, open_channel
from anthesis.v1 import registry_pb2, registry_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.access import Access, Permission
from services.common.auth import Call, Principal, current_principal
from services.common.errors import NotFound, ResourceExhausted, Unauthenticated, Unavailable
from services.common.server import RETRY_PUSHBACK, GrpcServer

SERVICE = "anthesis.v1.RegistryService"
RPCS = [method.name for method in registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].methods]
ACCESS: Access = dict.fromkeys(RPCS, Permission.READ) | {"ListApiKeys": Permission.ADMIN, "SetAlias": Permission.TRAIN}
GRPCURL = Path(sys.executable).with_name("grpcurl")


async def authenticate(secret: str) -> Principal:
    principals = {
        "user-key": Principal("1", "ada", "user"),
        "admin-key": Principal("2", "root", "admin"),
        "generate-key": Principal("3", "ada", "trainer", frozenset({"generate"})),
        "future-key": Principal("4", "bob", "overlord"),
    }
    if secret not in principals:
        raise Unauthenticated("unknown API key")
    return principals[secret]


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    async def GetModel(self, request: Any, context: Any) -> Any:
        if request.name == "broken":
            raise RuntimeError("a bug")
        if request.name == "busy":
            raise ResourceExhausted("too many", retry_delay_s=1.5)
        if request.name != "whoami":
            raise NotFound(f"no model {request.name!r}")
        return registry_pb2.GetModelResponse(model=registry_pb2.Model(name=current_principal().name))

    async def DownloadArtifact(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield registry_pb2.DownloadArtifactResponse(data=b"a")
        raise NotFound("gone in the middle")

    async def UploadArtifact(self, requests: Any, context: Any) -> Any:
        size = 0
        async for request in requests:
            size += len(request.data)
        return registry_pb2.UploadArtifactResponse(artifact=registry_pb2.Artifact(size_bytes=size))

    async def ListApiKeys(self, request: Any, context: Any) -> Any:
        return registry_pb2.ListApiKeysResponse()


denied: list[tuple[Call, str]] = []


async def on_denied(call: Call, resource: str) -> None:
    if resource == "nowhere":
        raise Unavailable("the audit log is away")
    denied.append((call, resource))


@pytest.fixture
async def address() -> AsyncIterator[str]:
    denied.clear()
    server = GrpcServer("registry", "127.0.0.1:0", authenticate=authenticate, on_denied=on_denied)
    server.add(registry_pb2_grpc.add_RegistryServiceServicer_to_server, Registry(), SERVICE, ACCESS)
    yield f"127.0.0.1:{await server.start()}"
    await server.stop(0)


_open: list[grpc.aio.Channel] = []


def stub(address: str, key: str = "user-key") -> "registry_pb2_grpc.RegistryServiceAsyncStub":
    _open.append(open_aio_channel(address, key))  # a stub alone does not keep its channel open
    return registry_pb2_grpc.RegistryServiceStub(_open[-1])


@pytest.fixture(autouse=True)
async def close_channels() -> AsyncIterator[None]:
    yield
    while _open:
        await _open.pop().close()


async def test_a_handler_knows_who_calls(address: str) -> None:
    answer = await stub(address).GetModel(registry_pb2.GetModelRequest(name="whoami"))
    assert answer.model.name == "ada"


@pytest.mark.parametrize("key", ["", "wrong"])
async def test_no_key_or_a_wrong_key_opens_nothing(address: str, key: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub(address, key).GetModel(registry_pb2.GetModelRequest(name="whoami"))
    assert failure.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_call_without_metadata_is_told_what_to_send(address: str) -> None:
    bare = registry_pb2_grpc.RegistryServiceStub(grpc.aio.insecure_channel(address))
    with pytest.raises(grpc.aio.AioRpcError, match="Bearer") as failure:
        await bare.GetModel(registry_pb2.GetModelRequest(name="whoami"))
    assert failure.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_role_that_may_not_is_denied(address: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub(address).ListApiKeys(registry_pb2.ListApiKeysRequest())
    assert failure.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert failure.value.details() == (
        "'ada' has role 'user'; RegistryService.ListApiKeys needs the permission 'admin' (roles admin): "
        "ask an admin for such a key"
    )
    await stub(address, "admin-key").ListApiKeys(registry_pb2.ListApiKeysRequest())


@pytest.mark.parametrize(("key", "why"), [("generate-key", "only the scopes generate"), ("future-key", "'overlord'")])
async def test_a_limited_key_and_a_role_nobody_knows_read_nothing(address: str, key: str, why: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=why) as failure:
        await stub(address, key).GetModel(registry_pb2.GetModelRequest(name="whoami"))
    assert failure.value.code() == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("resource", ["production", "nowhere"])
async def test_who_keeps_the_audit_log_hears_of_a_refusal_which_does_not_depend_on_it(
    address: str, resource: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub(address).SetAlias(registry_pb2.SetAliasRequest(name=resource, version="seedling"))
    assert failure.value.code() == grpc.StatusCode.PERMISSION_DENIED
    heard = [(call.principal.name, call.action, named) for call, named in denied]
    assert heard == ([("ada", "RegistryService.SetAlias", "production")] if resource == "production" else [])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ListModels": None}, "nobody says who may call ListModels; add them to its table"),
        ({"ListDragons": Permission.READ}, "its table of access names ListDragons, which it does not serve"),
    ],
)
def test_a_table_that_is_not_the_services_keeps_the_server_from_starting(change: dict, why: str) -> None:
    table = {rpc: permission for rpc, permission in (ACCESS | change).items() if permission}
    server = GrpcServer("registry", "127.0.0.1:0", authenticate=authenticate)
    with pytest.raises(RuntimeError, match=why):
        server.add(registry_pb2_grpc.add_RegistryServiceServicer_to_server, Registry(), SERVICE, table)


async def test_domain_errors_become_their_status_and_bugs_become_internal(address: str) -> None:
    for name, code in (("absent", grpc.StatusCode.NOT_FOUND), ("broken", grpc.StatusCode.INTERNAL)):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub(address).GetModel(registry_pb2.GetModelRequest(name=name))
        assert failure.value.code() == code
        assert "a bug" not in (failure.value.details() or "")


async def test_who_is_refused_for_load_is_told_when_to_try_again(address: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub(address).GetModel(registry_pb2.GetModelRequest(name="busy"))
    assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(failure.value.trailing_metadata())[RETRY_PUSHBACK] == "1500"


async def test_a_stream_that_fails_midway_delivers_what_it_had_and_its_status(address: str) -> None:
    call = stub(address).DownloadArtifact(registry_pb2.DownloadArtifactRequest())
    received = []
    with pytest.raises(grpc.aio.AioRpcError, match="gone in the middle"):
        async for part in call:
            received.append(part.data)
    assert received == [b"a"]


async def test_client_streams_carry_the_key_too(address: str) -> None:
    parts = (registry_pb2.UploadArtifactRequest(data=b"xyz") for _ in range(3))
    assert (await stub(address).UploadArtifact(parts)).artifact.size_bytes == 9
    sync = registry_pb2_grpc.RegistryServiceStub(open_channel(address, "user-key"))
    parts = (registry_pb2.UploadArtifactRequest(data=b"xyz") for _ in range(2))
    answer = await asyncio.to_thread(sync.UploadArtifact, parts)
    assert answer.artifact.size_bytes == 6


async def test_health_needs_no_key(address: str) -> None:
    health = health_pb2_grpc.HealthStub(grpc.aio.insecure_channel(address))
    for service in ("", "anthesis.v1.RegistryService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_needs_a_key(address: str) -> None:
    async def grpcurl(*args: str) -> subprocess.CompletedProcess[str]:
        command = [str(GRPCURL), "-plaintext", *args]
        return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)

    assert (await grpcurl(address, "list")).returncode != 0
    listed = await grpcurl("-H", "authorization: Bearer user-key", address, "list")
    assert "anthesis.v1.RegistryService" in listed.stdout


async def test_a_taken_port_is_named(address: str) -> None:
    second = GrpcServer("second", address, authenticate=authenticate)
    with pytest.raises(OSError, match=address):
        await second.start()
