"""Calls to inference workers, one channel per address."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import fields
from typing import Any

import grpc
from anthesis.channel import open_aio_channel
from anthesis.v1 import inference_pb2 as pb
from anthesis.v1 import inference_pb2_grpc as pb_grpc
from anthesis.v1.tokenizer_pb2 import TokenIds

from services.gateway.generation import Caller, Drawn, IdSequences, Pooling, Sampling, Token
from services.gateway.registry_client import Worker
from services.gateway.upstream import upstream

COMPUTE_TIMEOUT_S = 600.0  # of what has one answer, where the caller sets no deadline
_FINISH = {
    pb.FINISH_REASON_STOP: "STOP",
    pb.FINISH_REASON_LENGTH: "LENGTH",
    pb.FINISH_REASON_CANCELLED: "CANCELLED",
}
ScoreIds = tuple[list[int], list[int]]  # context, targets


class TokenStream:
    """What a worker draws, as it comes. Leaving the context before the end cancels the generation there."""

    def __init__(self, call: Any, worker: str) -> None:
        self._call = call
        self._worker = worker
        self._first: Any = None

    async def wait_for_first(self) -> None:
        """Until the first message: errors before it leave nothing done, so another worker may be asked."""
        try:
            with upstream(self._worker, callers_deadline=True):
                self._first = await self._call.read()
        except BaseException:
            self._call.cancel()
            raise

    async def __aenter__(self) -> "TokenStream":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._call.cancel()

    async def __aiter__(self) -> AsyncIterator[Drawn]:
        message = self._first
        while message is not grpc.aio.EOF:
            yield _drawn(message)
            with upstream(self._worker, callers_deadline=True):
                message = await self._call.read()


class InferenceClient:
    def __init__(self, service_key: str) -> None:
        self._service_key = service_key
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def generate(
        self, worker: Worker, version: str, prompt_ids: list[int], sampling: Sampling, caller: Caller
    ) -> TokenStream:
        """Start a generation; returns when its first message is there."""
        request = pb.InferenceServiceGenerateRequest(
            model_version=version,
            prompt_ids=prompt_ids,
            sampling=_sampling_to_proto(sampling),
            priority=caller.priority,
            client=caller.client,
        )
        stream = TokenStream(self._stub(worker).Generate(request, timeout=caller.timeout_s), _name(worker))
        await stream.wait_for_first()
        return stream

    async def score(self, worker: Worker, version: str, items: Sequence[ScoreIds], caller: Caller) -> list[list[Token]]:
        """Each item's targets with their log-probabilities, and beside them the likeliest id in their place."""
        request = pb.InferenceServiceScoreRequest(
            model_version=version,
            items=[pb.ScoreIds(context_ids=context, target_ids=targets) for context, targets in items],
            priority=caller.priority,
            client=caller.client,
        )
        with upstream(_name(worker), callers_deadline=caller.timeout_s is not None):
            answer = await self._stub(worker).Score(request, timeout=caller.timeout_s or COMPUTE_TIMEOUT_S)
        return [_scored(targets, item) for (_, targets), item in zip(items, answer.items, strict=True)]

    async def embed(
        self, worker: Worker, version: str, inputs: Sequence[list[int]], pooling: Pooling, caller: Caller
    ) -> list[Sequence[float]]:
        """A vector of each input."""
        request = pb.InferenceServiceEmbedRequest(
            model_version=version,
            inputs=[TokenIds(ids=ids) for ids in inputs],
            pooling=pb.Pooling.Value(f"POOLING_{pooling.kind.upper()}"),
            normalize=pooling.normalize,
            priority=caller.priority,
            client=caller.client,
        )
        with upstream(_name(worker), callers_deadline=caller.timeout_s is not None):
            answer = await self._stub(worker).Embed(request, timeout=caller.timeout_s or COMPUTE_TIMEOUT_S)
        return [embedding.values for embedding in answer.embeddings]

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()

    def _stub(self, worker: Worker) -> "pb_grpc.InferenceServiceAsyncStub":
        channel = self._channels.get(worker.address)
        if channel is None:
            channel = self._channels[worker.address] = open_aio_channel(worker.address, self._service_key)
        stub: pb_grpc.InferenceServiceAsyncStub = pb_grpc.InferenceServiceStub(channel)
        return stub


def _name(worker: Worker) -> str:
    return f"inference worker {worker.id} at {worker.address}"


def _sampling_to_proto(sampling: Sampling) -> pb.SamplingParams:
    """Fields that are None stay unset."""
    given = {item.name: getattr(sampling, item.name) for item in fields(sampling)}
    for name in ("bad_words", "stop_sequences"):
        given[name] = _sequences_to_proto(given[name])
    return pb.SamplingParams(**given)


def _sequences_to_proto(sequences: IdSequences) -> list[TokenIds]:
    return [TokenIds(ids=ids) for ids in sequences]


def _drawn(message: pb.InferenceServiceGenerateResponse) -> Drawn:
    return Drawn(
        [_token(token) for token in message.tokens],
        _FINISH.get(message.finish_reason),
        message.choice,
        [_token(token) for token in message.prompt_tokens],
    )


def _token(token: pb.GeneratedToken) -> Token:
    return Token(
        token.id,
        token.logprob if token.HasField("logprob") else None,
        tuple((top.id, top.logprob) for top in token.top_logprobs),
    )


def _scored(targets: list[int], item: pb.ScoredIds) -> list[Token]:
    return [
        Token(token_id, logprob, ((best.id, best.logprob),))
        for token_id, logprob, best in zip(targets, item.logprobs, item.best, strict=True)
    ]
