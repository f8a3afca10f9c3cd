"""What callers do to a worker, well and badly, and how each call may end."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from anthesis.channel import open_aio_channel
from anthesis.v1 import inference_pb2 as pb
from anthesis.v1.inference_pb2_grpc import InferenceServiceStub
from anthesis.v1.tokenizer_pb2 import TokenIds

from benchmarks.worker import WorkerProcess
from benchmarks.worker_process import KEY, VERSION

Action = str
# Action -> how often it is chosen.
ACTIONS = {
    "complete": 6,
    "cancel": 3,
    "disconnect": 1,
    "nonsense": 2,
    "deadline": 2,
    "score": 2,
    "choices": 1,
    "embed": 1,
}
HANGS_S = 120.0  # a call that says nothing for so long has been lost
RESULT = "result"
# Any call may meet a dead engine, or a full queue.
_BUSY = {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
ALLOWED = {
    "complete": {RESULT} | _BUSY,
    "cancel": {RESULT, "CANCELLED"} | _BUSY,
    "disconnect": {RESULT, "CANCELLED"} | _BUSY,
    "nonsense": {"INVALID_ARGUMENT", "UNAVAILABLE"},  # whether a version has an engine is looked at first
    "deadline": {RESULT, "DEADLINE_EXCEEDED"} | _BUSY,
    "score": {RESULT} | _BUSY,
    "choices": {RESULT} | _BUSY,
    "embed": {RESULT} | _BUSY,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    action: Action
    status: str  # RESULT, a gRPC code, or HUNG

    @property
    def is_allowed(self) -> bool:
        return self.status in ALLOWED[self.action]


async def perform(worker: WorkerProcess, action: Action, draw: random.Random, vocab: int) -> Outcome:
    """One call; how it ended."""
    try:
        async with asyncio.timeout(HANGS_S):
            status = await _PERFORM[action](worker, draw, vocab)
        return Outcome(action, status)
    except TimeoutError:
        return Outcome(action, "HUNG")
    except grpc.aio.AioRpcError as error:
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
            await asyncio.sleep(draw.uniform(0.02, 0.2))  # as a client would
        return Outcome(action, error.code().name)


def _ids(draw: random.Random, vocab: int, most: int = 200) -> list[int]:
    return [draw.randrange(4, vocab) for _ in range(draw.randint(1, most))]


def _sampling(draw: random.Random) -> dict[str, Any]:
    return draw.choice(
        [
            {},
            {"temperature": 0.8, "top_k": 40},
            {"temperature": 1.2, "top_p": 0.9, "logprobs": 3},
            {"temperature": 1.0, "repetition_penalty": 1.3, "seed": draw.randrange(100)},
        ]
    )


async def _complete(worker: WorkerProcess, draw: random.Random, vocab: int) -> str:
    async for _ in worker.generate(_ids(draw, vocab), draw.randint(1, 80), **_sampling(draw)):
        pass
    return RESULT


async def _cancel(worker: WorkerProcess, draw: random.Random, vocab: int) -> str:
    call = worker.generate(_ids(draw, vocab), 250, **_sampling(draw))
    messages = draw.randint(0, 12)
    if messages == 0:
        await asyncio.sleep(draw.uniform(0, 0.1))
    else:
        async for _ in call:
            messages -= 1
            if messages == 0:
                break
    return "CANCELLED" if call.cancel() else RESULT


async def _disconnect(worker: WorkerProcess, draw: random.Random, vocab: int) -> str:
    """A connection of its own, closed under the call."""
    async with open_aio_channel(worker.address, KEY) as channel:
        request = pb.InferenceServiceGenerateRequest(
            model_version=VERSION, prompt_ids=_ids(draw, vocab), sampling=pb.SamplingParams(max_tokens=250)
        )
        async for _ in InferenceServiceStub(channel).Generate(request):
            if draw.random() < 0.2:
                return "CANCELLED"
    return RESULT


async def _nonsense(worker: WorkerProcess, draw: random.Random, vocab: int) -> str:
    good = _ids(draw, vocab)
    wrong: list[tuple[list[int], dict[str, Any]]] = [
        ([], {}),
        ([*good, vocab], {}),
        ([4 + i % (vocab - 4) for i in range(5000)], {}),
        (good, {"temperature": -1.0}),
        (good, {"top_p": 0.0}),
        (good, {"top_p": 1.5}),
        (good, {"repetition_penalty": 0.0}),
        (good, {"logprobs": 1000}),
        (good, {"min_p": 2.0}),
        (good, {"temperature": 1.0, "n": 4, "best_of": 2}),
        (good, {"min_tokens": 9}),
    ]
    ids, sampling = draw.choice(wrong)
    async for _ in worker.generate(ids, 8, **sampling):
        pass
    return RESULT


async def _deadline(worker: WorkerProcess, draw: random.Random, vocab: int) -> str:
    async for _ in worker.generate(_ids(draw, vocab), 250, timeout_s=draw.uniform(0.01, 0.5), **_sampling(draw)):
        pass
    return RESULT


async def _score(worker: WorkerProcess, draw: random.Random, vocab: int) -> str:
    items = [pb.ScoreIds(context_ids=_ids(draw, vocab, 60), target_ids=_ids(draw, vocab, 40)) for _ in range(4)]
    await worker.stub.Score(pb.InferenceServiceScoreRequest(model_version=VERSION, items=items))
    return RESULT


async def _choices(worker: WorkerProcess, draw: random.Random, vocab: int) -> str:
    async for _ in worker.generate(_ids(draw, vocab), 30, temperature=1.0, n=2, best_of=4):
        pass
    return RESULT


async def _embed(worker: WorkerProcess, draw: random.Random, vocab: int) -> str:
    inputs = [TokenIds(ids=_ids(draw, vocab)) for _ in range(2)]
    await worker.stub.Embed(pb.InferenceServiceEmbedRequest(model_version=VERSION, inputs=inputs))
    return RESULT


_PERFORM: dict[Action, Callable[[WorkerProcess, random.Random, int], Awaitable[str]]] = {
    "complete": _complete,
    "cancel": _cancel,
    "disconnect": _disconnect,
    "nonsense": _nonsense,
    "deadline": _deadline,
    "score": _score,
    "choices": _choices,
    "embed": _embed,
}
