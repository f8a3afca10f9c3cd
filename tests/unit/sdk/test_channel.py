"""Calls against a real server: the key arrives, what is idempotent is retried, errors are typed."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from anthesis import AsyncClient, Settings
from anthesis.channel import open_channel
from anthesis.errors import DataLossError, NotFoundError, UnavailableError
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import (
    RegistryServiceServicer,
    RegistryServiceStub,
    add_RegistryServiceServicer_to_server,
)


class Registry(RegistryServiceServicer):
    """Notes the key of each call; is UNAVAILABLE as often as `failures` says."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.failures = 0
        self.received = b""

    async def _note(self, context: grpc.aio.ServicerContext) -> None:
        self.keys.append(dict(context.invocation_metadata())["authorization"])
        if self.failures:
            self.failures -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    async def GetModel(self, request: pb.GetModelRequest, context: grpc.aio.ServicerContext) -> pb.GetModelResponse:
        await self._note(context)
        return pb.GetModelResponse(model=pb.Model(name=request.name))

    async def CreateModel(self, request: pb.CreateModelRequest, context: grpc.aio.ServicerContext) -> None:
        await self._note(context)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        await self._note(context)
        page = int(request.page_token or 0)
        return pb.ListModelsResponse(
            models=[pb.Model(name=f"m{page}")], next_page_token=str(page + 1) if page < 2 else ""
        )

    async def GetArtifact(self, request: pb.GetArtifactRequest, context: grpc.aio.ServicerContext) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such artifact")

    async def UploadArtifact(
        self, parts: AsyncIterator[pb.UploadArtifactRequest], context: grpc.aio.ServicerContext
    ) -> pb.UploadArtifactResponse:
        await self._note(context)
        self.received = b"".join([part.data async for part in parts])
        return pb.UploadArtifactResponse(artifact=pb.Artifact(size_bytes=len(self.received)))

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        await self._note(context)
        yield pb.DownloadArtifactResponse(data=b"first")
        await context.abort(grpc.StatusCode.DATA_LOSS, "damaged")


@pytest.fixture
async def served() -> AsyncIterator[tuple[Registry, str]]:
    server, registry = grpc.aio.server(), Registry()
    add_RegistryServiceServicer_to_server(registry, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield registry, address
    await server.stop(0)


@pytest.fixture
async def client(served: tuple[Registry, str]) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(Settings(api_key="sesame", registry_address=served[1])) as client:
        yield client


@pytest.fixture
def registry(served: tuple[Registry, str]) -> Registry:
    return served[0]


async def test_the_key_goes_with_a_unary_call(client: AsyncClient, registry: Registry) -> None:
    assert (await client.models.get("bloom")).name == "bloom"
    assert registry.keys == ["Bearer sesame"]


async def test_the_key_goes_with_a_client_stream(client: AsyncClient, registry: Registry) -> None:
    data = bytes(range(256)) * 10_000

    assert (await client.artifacts.upload_bytes(data)).size_bytes == len(data)
    assert registry.received == data
    assert registry.keys == ["Bearer sesame"]


async def test_the_key_goes_with_a_server_stream_whose_error_is_typed(client: AsyncClient, registry: Registry) -> None:
    received = []
    with pytest.raises(DataLossError, match="damaged"):
        async for data in client.artifacts._receive("sha256:0", 0):
            received.append(data)

    assert [len(data) for data in received] == [5]
    assert registry.keys == ["Bearer sesame"]


async def test_a_synchronous_channel_sends_the_key_too(served: tuple[Registry, str]) -> None:
    registry, address = served

    def call() -> pb.GetModelResponse:
        with open_channel(address, "sesame") as channel:
            return RegistryServiceStub(channel).GetModel(pb.GetModelRequest(name="bloom"))

    assert (await asyncio.to_thread(call)).model.name == "bloom"
    assert registry.keys == ["Bearer sesame"]


async def test_reading_is_retried_while_the_service_is_away(client: AsyncClient, registry: Registry) -> None:
    registry.failures = 2

    assert (await client.models.get("bloom")).name == "bloom"
    assert len(registry.keys) == 3


async def test_retries_are_bounded(client: AsyncClient, registry: Registry) -> None:
    registry.failures = 100

    with pytest.raises(UnavailableError, match="not now"):
        await client.models.get("bloom")
    assert len(registry.keys) == 5


async def test_creating_is_not_retried(client: AsyncClient, registry: Registry) -> None:
    registry.failures = 1

    with pytest.raises(UnavailableError, match="not now"):
        await client.models.create(pb.Model(name="bloom"))
    assert len(registry.keys) == 1


async def test_a_listing_reads_every_page(client: AsyncClient) -> None:
    assert [model.name for model in await client.models.list()] == ["m0", "m1", "m2"]


async def test_an_error_has_the_type_of_its_status(client: AsyncClient) -> None:
    with pytest.raises(NotFoundError, match="no such artifact"):
        await client.artifacts.get("sha256:0")


async def test_a_service_that_is_not_there_is_named() -> None:
    async with AsyncClient(Settings(api_key="k", registry_address="127.0.0.1:1")) as client:
        with pytest.raises(UnavailableError, match=r"nothing answers at 127\.0\.0\.1:1; start the platform"):
            await client.models.create(pb.Model(name="bloom"))
