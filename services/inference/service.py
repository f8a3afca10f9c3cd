"""What a worker does for its callers, in plain Python."""

import asyncio
from collections.abc import Sequence

from services.common.errors import InvalidArgument
from services.inference.engine_client import Call
from services.inference.loaded_version import LoadedVersion, VersionStatus
from services.inference.messages import Scored
from services.inference.sampling import SamplingParams
from services.inference.worker import Worker

MAX_SCORED_AT_ONCE = 64  # items of one Score call in the engine's queue, which others use too


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

    def generate(self, model_version: str, prompt_ids: Sequence[int], sampling: SamplingParams) -> Call:
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
        return engine.generate(list(prompt_ids), sampling)

    async def score(self, model_version: str, items: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Scored]:
        """Log-probabilities of each item's targets after its context. Raises as `generate` does."""
        version = self._worker.version(model_version)
        engine = version.engine
        for number, (context_ids, target_ids) in enumerate(items):
            _check_ids(version, f"items[{number}].context_ids", context_ids)
            if target_ids:
                _check_ids(version, f"items[{number}].target_ids", target_ids)
            length = len(context_ids) + len(target_ids)
            if length > version.max_sequence_tokens:
                raise InvalidArgument(
                    f"items[{number}] has {length} ids; {version.name} serves {version.max_sequence_tokens} tokens"
                )
        slots = asyncio.Semaphore(MAX_SCORED_AT_ONCE)

        async def score_one(context_ids: Sequence[int], target_ids: Sequence[int]) -> Scored:
            if not target_ids:
                return Scored(0, [], [])
            async with slots:
                return await engine.score(list(context_ids), list(target_ids))

        tasks = [asyncio.create_task(score_one(*item)) for item in items]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # of one that failed: the others' blocks are freed
                task.cancel()


def _check_ids(version: LoadedVersion, name: str, ids: Sequence[int]) -> None:
    if not ids:
        raise InvalidArgument(f"{name} is empty; send at least one id (<s> where there is no text)")
    if max(ids) >= version.num_token_ids:
        raise InvalidArgument(
            f"{name} has id {max(ids)}, outside the vocabulary of {version.name}; use 0 to {version.num_token_ids - 1}"
        )
