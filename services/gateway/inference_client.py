"""Calls to inference workers, one channel per address."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from anthesis.channel import open_aio_channel
from anthesis.v1 import inference_pb2 as pb
from anthesis.v1 import inference_pb2_grpc as pb_grpc

from services.gateway.generation import Drawn, Sampling, Token
from services.gateway.registry_client import Worker
from services.gateway.upstream import upstream

SCORE_TIMEOUT_S = 600.0
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
            with upstream(self._worker):
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
            with upstream(self._worker):
                message = await self._call.read()


class InferenceClient:
    def __init__(self, service_key: str) -> None:
        self._service_key = service_key
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def generate(self, worker: Worker, version: str, prompt_ids: list[int], sampling: Sampling) -> TokenStream:
        """Start a generation; returns when its first token is there."""
        request = pb.InferenceServiceGenerateRequest(
            model_version=version, prompt_ids=prompt_ids, sampling=_sampling_to_proto(sampling)
        )
        stream = TokenStream(self._stub(worker).Generate(request), _name(worker))
        await stream.wait_for_first()
        return stream

    async def score(self, worker: Worker, version: str, items: Sequence[ScoreIds]) -> list[list[Token]]:
        """Each item's targets with their log-probabilities, and beside them the likeliest id in their place."""
        request = pb.InferenceServiceScoreRequest(
            model_version=version,
            items=[pb.ScoreIds(context_ids=context, target_ids=targets) for context, targets in items],
        )
        with upstream(_name(worker)):
            answer = await self._stub(worker).Score(request, timeout=SCORE_TIMEOUT_S)
        return [_scored(targets, item) for (_, targets), item in zip(items, answer.items, strict=True)]

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
    return pb.SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed,
        max_tokens=sampling.max_tokens,
        stop_ids=sampling.stop_ids,
        logprobs=sampling.logprobs,
    )


def _drawn(message: pb.InferenceServiceGenerateResponse) -> Drawn:
    tokens = [
        Token(
            token.id,
            token.logprob if token.HasField("logprob") else None,
            tuple((top.id, top.logprob) for top in token.top_logprobs),
        )
        for token in message.tokens
    ]
    return Drawn(tokens, _FINISH.get(message.finish_reason))


def _scored(targets: list[int], item: pb.ScoredIds) -> list[Token]:
    return [
        Token(token_id, logprob, ((best.id, best.logprob),))
        for token_id, logprob, best in zip(targets, item.logprobs, item.best, strict=True)
    ]
