"""The asynchronous client; `anthesis.client` is the same for code without an event loop."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, TypedDict, Unpack

import grpc

from anthesis.aliases import Aliases
from anthesis.artifacts import Artifacts
from anthesis.audit import Audit
from anthesis.channel import open_aio_channel
from anthesis.datasets import Datasets
from anthesis.deployments import Deployments
from anthesis.errors import AnthesisError
from anthesis.evaluations import Evaluations, Gates
from anthesis.files import Files
from anthesis.jobs import Jobs
from anthesis.keys import Keys
from anthesis.licences import Licences
from anthesis.models import Models
from anthesis.policy import service_config
from anthesis.projects import Projects
from anthesis.rpc import HEALTH_CHECK, HEALTH_REQUEST, HEALTH_SERVING, stream, unary
from anthesis.settings import Settings
from anthesis.tokenizers import Tokenizers
from anthesis.v1 import generation_pb2 as pb
from anthesis.v1.generation_pb2_grpc import GenerationServiceStub
from anthesis.v1.inference_pb2 import (
    POOLING_LAST,
    POOLING_MEAN,
    FinishReason,
    GetWorkerStatusRequest,
    GetWorkerStatusResponse,
    SamplingParams,
)
from anthesis.v1.inference_pb2_grpc import InferenceServiceStub
from anthesis.webhooks import Webhooks

HEALTH_DEADLINE_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """A whole answer: one choice."""

    text: str
    tokens: Sequence[pb.TextToken]
    finish_reason: "FinishReason.ValueType"
    usage: pb.Usage
    model_version: str
    machine_generated: bool = False
    licences: Sequence[str] = ()  # of the version that answered
    prompt_tokens: Sequence[pb.TextToken] = ()  # with `prompt_logprobs`


class GenerateOptions(TypedDict, total=False):
    """What a generation may be told beside `SamplingParams`."""

    stop: Iterable[str]  # the text ends before the first of these
    bad_words: Iterable[str]  # never written, alone or after a space, as far as their tokens can tell
    ignore_eos: bool  # go on after </s>, to max_tokens
    priority: int  # -100 (first) to 100; default 0


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
        self.aliases = Aliases(registry)
        self.artifacts = Artifacts(registry)
        self.datasets = Datasets(registry)
        self.files = Files(registry)
        self.jobs = Jobs(registry)
        self.deployments = Deployments(registry)
        self.keys = Keys(registry)
        self.audit = Audit(registry)
        self.licences = Licences(registry)
        self.evaluations = Evaluations(registry)
        self.gates = Gates(registry)
        self.projects = Projects(registry)
        self.webhooks = Webhooks(registry)
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
        self,
        model: str,
        prompt: str,
        sampling: SamplingParams | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Stream completions of `prompt`. Each message has new `text` of one `choice` (there is more than one where
        `sampling.n` says so); a choice's last has `finish_reason` and `usage`.

        Leaving the loop early cancels the call and frees its cache. Raises NotFoundError (no such model),
        UnavailableError (no worker has it ready), InvalidArgumentError, ResourceExhaustedError (which says when to try
        again), DeadlineExceededError: after `timeout_s`, or ten minutes.
        """
        request = pb.GenerateRequest(model=model, prompt=prompt, sampling=sampling, **options)
        async with stream(self._generation.Generate(request, timeout=timeout_s)) as responses:
            async for response in responses:
                yield response

    async def choices(
        self,
        model: str,
        prompt: str,
        sampling: SamplingParams | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Sequence[Completion]:
        """`generate`, awaited to its end: `sampling.n` answers, with `sampling.best_of` the best first."""
        parts = [part async for part in self.generate(model, prompt, sampling, timeout_s=timeout_s, **options)]
        prompt_tokens = [token for part in parts for token in part.prompt_tokens]
        numbers = sorted({part.choice for part in parts}) or [0]
        return [_completion([part for part in parts if part.choice == number], prompt_tokens) for number in numbers]

    async def complete(
        self,
        model: str,
        prompt: str,
        sampling: SamplingParams | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """The first of `choices`."""
        return (await self.choices(model, prompt, sampling, timeout_s=timeout_s, **options))[0]

    async def embed(
        self,
        model: str,
        texts: Iterable[str],
        *,
        pooling: Literal["mean", "last"] = "mean",
        normalize: bool = True,
        priority: int = 0,
    ) -> pb.EmbedResponse:
        """A vector of each text, as wide as the model: the mean of its tokens' last hidden states, or that of its last
        token; with `normalize` of length 1. An empty text stands for <s>. At most 2,048 texts.
        """
        kind = POOLING_LAST if pooling == "last" else POOLING_MEAN
        request = pb.EmbedRequest(model=model, texts=texts, pooling=kind, normalize=normalize, priority=priority)
        return await unary(self._generation.Embed(request))

    async def tokenize(self, model: str, text: str) -> pb.TokenizeResponse:
        """Ids, bytes and offsets of each token of `text`, and the ids decoded back."""
        return await unary(self._generation.Tokenize(pb.TokenizeRequest(model=model, text=text)))

    async def count(self, model: str, texts: Iterable[str]) -> Sequence[int]:
        """Number of tokens of each text."""
        return (await unary(self._generation.Count(pb.CountRequest(model=model, texts=texts)))).counts

    async def score(self, model: str, items: Iterable[pb.ScoreItem], *, priority: int = 0) -> pb.ScoreResponse:
        """Log-likelihood (natural logarithm) of each item's text given its context."""
        return await unary(self._generation.Score(pb.ScoreRequest(model=model, items=items, priority=priority)))

    async def worker_status(self) -> GetWorkerStatusResponse:
        """What the inference worker has loaded, and how busy it is."""
        return await unary(self._inference.GetWorkerStatus(GetWorkerStatusRequest()))

    async def health(self) -> Mapping[str, str]:
        """Of each service: "SERVING", "NOT_SERVING", or why it does not answer."""
        answers = await asyncio.gather(*(_check_health(channel) for channel in self._channels.values()))
        return dict(zip(self._channels, answers, strict=True))


def _completion(parts: Sequence[pb.GenerateResponse], prompt_tokens: Sequence[pb.TextToken]) -> Completion:
    last = parts[-1] if parts else pb.GenerateResponse()
    return Completion(
        text="".join(part.text for part in parts),
        tokens=[token for part in parts for token in part.tokens],
        finish_reason=last.finish_reason,
        usage=last.usage,
        model_version=last.model_version,
        machine_generated=last.machine_generated,
        licences=last.licences,
        prompt_tokens=prompt_tokens,
    )


async def _check_health(channel: grpc.aio.Channel) -> str:
    check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(HEALTH_CHECK)
    try:
        answer = await unary(check(HEALTH_REQUEST, timeout=HEALTH_DEADLINE_S))
    except AnthesisError as error:
        return str(error)
    return "SERVING" if answer == HEALTH_SERVING else "NOT_SERVING"
