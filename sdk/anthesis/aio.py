"""The asynchronous client; `anthesis.client` is the same for code without an event loop."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc

from anthesis.artifacts import Artifacts
from anthesis.channel import open_aio_channel
from anthesis.datasets import Datasets
from anthesis.deployments import Deployments
from anthesis.errors import AnthesisError
from anthesis.jobs import Jobs
from anthesis.keys import Keys
from anthesis.models import Models
from anthesis.policy import service_config
from anthesis.rpc import HEALTH_CHECK, HEALTH_REQUEST, HEALTH_SERVING, stream, unary
from anthesis.settings import Settings
from anthesis.tokenizers import Tokenizers
from anthesis.v1 import generation_pb2 as pb
from anthesis.v1.generation_pb2_grpc import GenerationServiceStub
from anthesis.v1.inference_pb2 import FinishReason, GetWorkerStatusRequest, GetWorkerStatusResponse, SamplingParams
from anthesis.v1.inference_pb2_grpc import InferenceServiceStub

HEALTH_DEADLINE_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """A whole answer."""

    text: str
    tokens: Sequence[pb.TextToken]
    finish_reason: "FinishReason.ValueType"
    usage: pb.Usage
    model_version: str


class AsyncClient:
    """Every service of the platform. Make it where an event loop runs; close it, or use `async with`.

    Calls raise `anthesis.errors.AnthesisError`'s children.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.from_env()
        self._channels = {
            "gateway": self._open(self.settings.gateway_address),
            "tokenizer": self._open(self.settings.tokenizer_address),
            "inference": self._open(self.settings.inference_address),
            "registry": self._open(self.settings.registry_address),
        }
        registry = self._channels["registry"]
        self.models = Models(registry)
        self.artifacts = Artifacts(registry)
        self.datasets = Datasets(registry)
        self.jobs = Jobs(registry)
        self.deployments = Deployments(registry)
        self.keys = Keys(registry)
        self.tokenizers = Tokenizers(self._channels["tokenizer"])
        self._generation = GenerationServiceStub(self._channels["gateway"])
        self._inference = InferenceServiceStub(self._channels["inference"])

    def _open(self, address: str) -> grpc.aio.Channel:
        return open_aio_channel(
            address,
            self.settings.api_key,
            root_certificates=self.settings.root_certificates,
            service_config=service_config(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End every call and connection."""
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    async def generate(
        self, model: str, prompt: str, sampling: SamplingParams | None = None, *, stop: Iterable[str] = ()
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Stream a completion of `prompt`. Each message has the new `text`; the last has `finish_reason` and `usage`.

        Leaving the loop early cancels the call and frees its cache. Raises NotFoundError (no such model),
        UnavailableError (no worker has it ready), InvalidArgumentError.
        """
        request = pb.GenerateRequest(model=model, prompt=prompt, sampling=sampling, stop=stop)
        async with stream(self._generation.Generate(request)) as responses:
            async for response in responses:
                yield response

    async def complete(
        self, model: str, prompt: str, sampling: SamplingParams | None = None, *, stop: Iterable[str] = ()
    ) -> Completion:
        """`generate`, awaited to its end."""
        parts = [part async for part in self.generate(model, prompt, sampling, stop=stop)]
        last = parts[-1] if parts else pb.GenerateResponse()
        return Completion(
            text="".join(part.text for part in parts),
            tokens=[token for part in parts for token in part.tokens],
            finish_reason=last.finish_reason,
            usage=last.usage,
            model_version=last.model_version,
        )

    async def tokenize(self, model: str, text: str) -> pb.TokenizeResponse:
        """Ids, bytes and offsets of each token of `text`, and the ids decoded back."""
        return await unary(self._generation.Tokenize(pb.TokenizeRequest(model=model, text=text)))

    async def count(self, model: str, texts: Iterable[str]) -> Sequence[int]:
        """Number of tokens of each text."""
        return (await unary(self._generation.Count(pb.CountRequest(model=model, texts=texts)))).counts

    async def score(self, model: str, items: Iterable[pb.ScoreItem]) -> pb.ScoreResponse:
        """Log-likelihood (natural logarithm) of each item's text given its context."""
        return await unary(self._generation.Score(pb.ScoreRequest(model=model, items=items)))

    async def worker_status(self) -> GetWorkerStatusResponse:
        """What the inference worker has loaded, and how busy it is."""
        return await unary(self._inference.GetWorkerStatus(GetWorkerStatusRequest()))

    async def health(self) -> Mapping[str, str]:
        """Of each service: "SERVING", "NOT_SERVING", or why it does not answer."""
        answers = await asyncio.gather(*(_check_health(channel) for channel in self._channels.values()))
        return dict(zip(self._channels, answers, strict=True))


async def _check_health(channel: grpc.aio.Channel) -> str:
    check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(HEALTH_CHECK)
    try:
        answer = await unary(check(HEALTH_REQUEST, timeout=HEALTH_DEADLINE_S))
    except AnthesisError as error:
        return str(error)
    return "SERVING" if answer == HEALTH_SERVING else "NOT_SERVING"
