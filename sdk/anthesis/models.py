"""Models, their versions and lineage."""

from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Unpack

import grpc

from anthesis.queries import ModelQuery, VersionQuery, fields
from anthesis.rpc import PAGE_SIZE, pages, stream, unary
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub


class Models:
    """What the registry knows of models. A version's `name` may be all that `resolve` takes."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = RegistryServiceStub(channel)

    async def list(self, **query: Unpack[ModelQuery]) -> Sequence[pb.Model]:
        """Every model, the catalogue's included, that is as `query` says. Raises InvalidArgumentError."""
        request = pb.ListModelsRequest(page_size=PAGE_SIZE, **fields(query))
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

    async def list_versions(self, model: str = "", **query: Unpack[VersionQuery]) -> Sequence[pb.ModelVersion]:
        """A model's versions, or those of all models, that are as `query` says; newest first unless it says otherwise.

        Raises InvalidArgumentError.
        """
        request = pb.ListModelVersionsRequest(model=model, page_size=PAGE_SIZE, **fields(query))
        return [version async for page in pages(self._stub.ListModelVersions, request) for version in page.versions]

    async def delete_version(self, name: str) -> pb.ModelVersion:
        """Let "<model>@<number>" resolve no more; until its `expire_time` it can be brought back.

        Raises FailedPreconditionError while an alias, a deployment, a child or a job needs it, NotFoundError.
        """
        return (await unary(self._stub.DeleteModelVersion(pb.DeleteModelVersionRequest(name=name)))).version

    async def undelete_version(self, name: str) -> pb.ModelVersion:
        """Bring it back. Raises AlreadyExistsError, NotFoundError; FailedPreconditionError: its files are gone."""
        return (await unary(self._stub.UndeleteModelVersion(pb.UndeleteModelVersionRequest(name=name)))).version

    async def delete(self, name: str) -> pb.Model:
        """Leave a model, all of whose versions are deleted, out of lists.

        Raises FailedPreconditionError, NotFoundError.
        """
        return (await unary(self._stub.DeleteModel(pb.DeleteModelRequest(name=name)))).model

    async def undelete(self, name: str) -> pb.Model:
        """Raises AlreadyExistsError, NotFoundError."""
        return (await unary(self._stub.UndeleteModel(pb.UndeleteModelRequest(name=name)))).model

    async def tag(self, name: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Sequence[str]:
        """Change the tags of a model, or of a version ("<model>@<number>"); all it has then.

        Raises InvalidArgumentError, NotFoundError.
        """
        return (
            await unary(self._stub.UpdateModelTags(pb.UpdateModelTagsRequest(name=name, add=add, remove=remove)))
        ).tags

    async def card(self, name: str) -> pb.ModelCard:
        """A model's card, or that of the version that `name` means; its `markdown` is a README.md as on the Hub."""
        return (await unary(self._stub.GetModelCard(pb.GetModelCardRequest(name=name)))).card

    async def update_card(self, name: str, text: str, *, if_generation: int | None = None) -> pb.ModelCard:
        """Replace what people wrote on the card of a model, or of a version ("<model>@<number>").

        `text`: Markdown, in which "## <title>" begins a section; a whole card that was edited will do. Raises
        AbortedError when the card is not at `if_generation`, InvalidArgumentError.
        """
        request = pb.UpdateModelCardRequest(name=name, text=text, if_generation=if_generation)
        return (await unary(self._stub.UpdateModelCard(request))).card

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
