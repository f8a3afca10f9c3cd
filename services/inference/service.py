"""What a worker does for its callers, in plain Python."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, TypeVar

from services.common.errors import InvalidArgument
from services.inference.caller import ANONYMOUS, Caller
from services.inference.engine_client import Call
from services.inference.loaded_version import LoadedVersion, VersionStatus
from services.inference.messages import Scored
from services.inference.sampling import Pooling, SamplingParams
from services.inference.worker import Worker

MAX_ITEMS_AT_ONCE = 64  # of one Score or Embed call in the engine's queue, which others use too
_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


class InferenceService:
    """Checks a request against the version it names, then hands it to that version's engine."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    @property
    def worker_id(self) -> str:
        return self._worker.worker_id

    @property
    def device(self) -> str:
        return self._worker.device

    def statuses(self) -> list[VersionStatus]:
        return self._worker.statuses()

    def generate(
        self, model_version: str, prompt_ids: Sequence[int], sampling: SamplingParams, caller: Caller = ANONYMOUS
    ) -> Call:
        """Start a generation. Raises InvalidArgument, NotFound, Unavailable; iterating also ResourceExhausted."""
        version = self._worker.version(model_version)
        engine = version.engine
        _check_ids(version, "prompt_ids", prompt_ids)
        most = version.max_sequence_tokens - 1
        if len(prompt_ids) > most:
            raise InvalidArgument(
                f"prompt_ids has {len(prompt_ids)} ids; {version.name} serves {version.max_sequence_tokens} tokens, "
                f"prompt and output together: send at most {most}"
            )
        _check_sampling(version, sampling)
        return engine.generate(list(prompt_ids), sampling, caller)

    async def score(
        self,
        model_version: str,
        items: Sequence[tuple[Sequence[int], Sequence[int]]],
        caller: Caller = ANONYMOUS,
    ) -> list[Scored]:
        """Log-probabilities of each item's targets after its context. Raises as `generate` does."""
        version = self._worker.version(model_version)
        engine = version.engine
        for number, (context_ids, target_ids) in enumerate(items):
            _check_ids(version, f"items[{number}].context_ids", context_ids)
            if target_ids:
                _check_ids(version, f"items[{number}].target_ids", target_ids)
            _check_length(version, f"items[{number}]", len(context_ids) + len(target_ids))

        async def score_one(item: tuple[Sequence[int], Sequence[int]]) -> Scored:
            context_ids, target_ids = item
            if not target_ids:
                return Scored(0, [], [])
            return await engine.score(list(context_ids), list(target_ids), caller)

        return await _all(score_one, items)

    async def embed(
        self,
        model_version: str,
        inputs: Sequence[Sequence[int]],
        pooling: Pooling,
        *,
        normalize: bool,
        caller: Caller = ANONYMOUS,
    ) -> list[list[float]]:
        """A vector (H,) of each input. Raises as `generate` does."""
        version = self._worker.version(model_version)
        engine = version.engine
        for number, ids in enumerate(inputs):
            _check_ids(version, f"inputs[{number}].ids", ids)
            _check_length(version, f"inputs[{number}]", len(ids))
        return await _all(lambda ids: engine.embed(list(ids), pooling, normalize=normalize, caller=caller), inputs)


async def _all(answer: Callable[[_Item], Coroutine[Any, Any, _Answer]], items: Sequence[_Item]) -> list[_Answer]:
    """The answers to all items, not too many under way at once. The first failure, or a caller who goes, ends all."""
    slots = asyncio.Semaphore(MAX_ITEMS_AT_ONCE)

    async def answer_one(item: _Item) -> _Answer:
        async with slots:
            return await answer(item)

    tasks = [asyncio.create_task(answer_one(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # of one that failed: the others' blocks are freed
            task.cancel()


def _check_length(version: LoadedVersion, name: str, length: int) -> None:
    if length > version.max_sequence_tokens:
        raise InvalidArgument(f"{name} has {length} ids; {version.name} serves {version.max_sequence_tokens} tokens")


def _check_sampling(version: LoadedVersion, sampling: SamplingParams) -> None:
    for name, ids in sampling.ids().items():
        if ids:
            _check_ids(version, name, ids)
    if len(sampling.may_be_banned()) >= version.num_token_ids:
        raise InvalidArgument(
            f"bad_words, and stop_ids before min_tokens, ban all {version.num_token_ids} ids of {version.name}; "
            "leave one that can be drawn"
        )


def _check_ids(version: LoadedVersion, name: str, ids: Collection[int]) -> None:
    if not ids:
        raise InvalidArgument(f"{name} is empty; send at least one id (<s> where there is no text)")
    if max(ids) >= version.num_token_ids or min(ids) < 0:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise InvalidArgument(
            f"{name} has id {wrong}, outside the vocabulary of {version.name}; use 0 to {version.num_token_ids - 1}"
        )
