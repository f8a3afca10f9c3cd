"""Models, their versions and lineage."""

from collections.abc import AsyncGenerator, Sequence

import grpc

from anthesis.rpc import PAGE_SIZE, pages, stream, unary
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub


class Models:
    """What the registry knows of models. A version's `name` may be all that `resolve` takes."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = RegistryServiceStub(channel)

    async def list(self) -> Sequence[pb.Model]:
        """Every model, the catalogue's included."""
        request = pb.ListModelsRequest(page_size=PAGE_SIZE)
        return [model async for page in pages(self._stub.ListModels, request) for model in page.models]

    async def get(self, name: str) -> pb.Model:
        """Raises NotFoundError."""
        return (await unary(self._stub.GetModel(pb.GetModelRequest(name=name)))).model

    async def create(self, model: pb.Model) -> pb.Model:
        """Raises AlreadyExistsError, InvalidArgumentError."""
        return (await unary(self._stub.CreateModel(pb.CreateModelRequest(model=model)))).model

    async def resolve(self, name: str) -> pb.ResolveModelResponse:
        """The version that an alias, "<model>@<number>" or a model's name stands for, and who has it ready."""
        return await unary(self._stub.ResolveModel(pb.ResolveModelRequest(name=name)))

    async def create_version(self, version: pb.ModelVersion) -> pb.ModelVersion:
        """Register uploaded files. Raises InvalidArgumentError: a tensor is missing, extra or misshapen."""
        return (await unary(self._stub.CreateModelVersion(pb.CreateModelVersionRequest(version=version)))).version

    async def get_version(self, name: str) -> pb.ModelVersion:
        """Raises NotFoundError."""
        return (await unary(self._stub.GetModelVersion(pb.GetModelVersionRequest(name=name)))).version

    async def list_versions(self, model: str = "") -> Sequence[pb.ModelVersion]:
        """A model's versions, or those of all models; newest first."""
        request = pb.ListModelVersionsRequest(model=model, page_size=PAGE_SIZE)
        return [version async for page in pages(self._stub.ListModelVersions, request) for version in page.versions]

    async def lineage(self, version: str) -> Sequence[pb.ModelVersion]:
        """The versions it was tuned from, nearest first."""
        return (await unary(self._stub.GetLineage(pb.GetLineageRequest(version=version)))).ancestors

    async def compare(self, version: str, other: str) -> AsyncGenerator[pb.CompareVersionsResponse, None]:
        """How far the weights of two versions are apart, tensor by tensor; computed where they lie.

        Raises FailedPreconditionError where they have other tensors.
        """
        async with stream(self._stub.CompareVersions(pb.CompareVersionsRequest(version=version, other=other))) as parts:
            async for part in parts:
                yield part
