"""What the gateway asks the registry."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1 import registry_pb2_grpc as pb_grpc

from services.gateway.upstream import upstream

TIMEOUT_S = 10.0
PAGE_SIZE = 200


@dataclass(slots=True)
class Worker:
    """An inference worker that has the version ready. `load`: requests there, as far as the gateway knows."""

    id: str
    address: str
    max_sequence_tokens: int
    load: int


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """Where a name leads now."""

    version: str  # "<model>@<number>"
    tokenizer_digest: str
    created_s: int  # seconds since 1970
    workers: tuple[Worker, ...]
    licences: tuple[str, ...] = ()  # ids

    @property
    def max_sequence_tokens(self) -> int:
        """The longest sequence that any of its workers serves; 0 when there is none."""
        return max((worker.max_sequence_tokens for worker in self.workers), default=0)


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A name that generates: an alias, or a model with weights."""

    name: str
    created_s: int


class RegistryClient:
    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        self._stub: pb_grpc.RegistryServiceAsyncStub = pb_grpc.RegistryServiceStub(channel)
        self._name = f"the registry at {address}"

    async def resolve(self, name: str) -> ResolvedModel:
        """Raises NotFound for a name that leads to no version."""
        with upstream(self._name):
            answer = await self._stub.ResolveModel(pb.ResolveModelRequest(name=name), timeout=TIMEOUT_S)
        return ResolvedModel(
            version=answer.version.name,
            tokenizer_digest=answer.version.tokenizer_digest,
            licences=tuple(filter(None, answer.version.licence.split(" AND "))),
            created_s=answer.version.create_time.seconds,
            workers=tuple(
                Worker(worker.id, worker.address, worker.max_sequence_tokens, worker.load) for worker in answer.workers
            ),
        )

    async def list_models(self) -> list[ListedModel]:
        """Aliases, then models that have weights."""
        with upstream(self._name):
            aliases = [ListedModel(alias.name, alias.update_time.seconds) async for alias in self._aliases()]
            models = [
                ListedModel(model.name, model.create_time.seconds)
                async for model in self._models()
                if model.latest_version
            ]
        named = {alias.name for alias in aliases}  # a name means the alias before it means the model
        return aliases + [model for model in models if model.name not in named]

    async def _aliases(self) -> AsyncIterator[pb.Alias]:
        token = ""
        while True:
            request = pb.ListAliasesRequest(page_size=PAGE_SIZE, page_token=token)
            page = await self._stub.ListAliases(request, timeout=TIMEOUT_S)
            for alias in page.aliases:
                yield alias
            token = page.next_page_token
            if not token:
                return

    async def _models(self) -> AsyncIterator[pb.Model]:
        token = ""
        while True:
            request = pb.ListModelsRequest(page_size=PAGE_SIZE, page_token=token)
            page = await self._stub.ListModels(request, timeout=TIMEOUT_S)
            for model in page.models:
                yield model
            token = page.next_page_token
            if not token:
                return
