"""A request inside the engine: its token ids, the blocks it holds and how far it is computed."""

import math
from array import array
from collections.abc import Iterable
from typing import Any

from services.inference.sampling import SamplingParams


class Sequence:
    """What the scheduler and the block manager know of a request, or of one of its choices.

    Inputs are the first `num_inputs` tokens: those that must pass through the model. `first_needed` is the position
    of the first input whose hidden state is still needed, so blocks before it may come from the prefix cache.
    """

    __slots__ = (
        "arrival",
        "awaited",
        "block_digests",
        "block_table",
        "choice",
        "client",
        "deadline",
        "num_cached",
        "num_computed",
        "num_registered",
        "priority",
        "request_id",
        "token_ids",
    )

    def __init__(
        self,
        request_id: int,
        token_ids: Iterable[int],
        *,
        priority: int = 0,
        client: str = "",
        deadline: float = math.inf,
    ) -> None:
        self.request_id = request_id
        self.choice = 0
        self.priority = priority  # lower runs first
        self.client = client
        self.deadline = deadline  # on the scheduler's clock
        self.arrival = 0  # the scheduler numbers requests
        self.token_ids = array("q", token_ids)
        self.block_table = array("i")
        self.block_digests: list[bytes] = []  # content hash of each full block, chained
        self.awaited: bytes | None = None  # of a block that another sequence was computing when last looked at
        self.num_registered = 0  # full blocks that the prefix cache was told of
        self.num_computed = 0  # inputs whose keys and values lie in the cache
        self.num_cached: int | None = None  # of these, answered by the prefix cache when first admitted

    @property
    def num_inputs(self) -> int:
        raise NotImplementedError

    @property
    def first_needed(self) -> int:
        raise NotImplementedError

    @property
    def max_inputs(self) -> int:
        """As many tokens of it as the cache may have to hold."""
        return self.num_inputs

    @property
    def is_scored(self) -> bool:
        """Whether logits of all inputs from `first_needed` on are needed, not of the last one alone."""
        return False

    @property
    def num_forks(self) -> int:
        """Choices that will be forked from this one once its prompt is computed."""
        return 0

    @property
    def num_pending(self) -> int:
        """Inputs still to be computed."""
        return self.num_inputs - self.num_computed


class Generation(Sequence):
    """Draws tokens until a stop id or sequence, `max_tokens`, or `max_sequence_tokens` in all."""

    __slots__ = ("_forked", "alternatives", "logprobs", "max_length", "num_prompt", "sampling")

    def __init__(
        self,
        request_id: int,
        prompt_ids: Iterable[int],
        sampling: SamplingParams,
        max_sequence_tokens: int,
        **request: Any,
    ) -> None:
        super().__init__(request_id, prompt_ids, **request)
        self.sampling = sampling
        self.num_prompt = len(self.token_ids)
        self.max_length = min(self.num_prompt + sampling.max_tokens, max_sequence_tokens)
        self.logprobs: list[float] = []  # of the prompt's tokens so far but the first; kept over a preemption
        self.alternatives: list[list[tuple[int, float]]] = []  # the likeliest ids in their places
        self._forked = sampling.best_of == 1

    @property
    def num_inputs(self) -> int:
        return len(self.token_ids)

    @property
    def first_needed(self) -> int:
        return len(self.logprobs) if self.is_scored else len(self.token_ids) - 1

    @property
    def max_inputs(self) -> int:
        return self.max_length

    @property
    def num_forks(self) -> int:
        return 0 if self._forked else self.sampling.best_of - 1

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def is_scored(self) -> bool:
        """Log-probabilities of the prompt are asked for and not all there yet."""
        return (
            self.sampling.prompt_logprobs is not None and self.choice == 0 and len(self.logprobs) < self.num_prompt - 1
        )

    def forks(self) -> list["Generation"]:
        """The other choices, with the same tokens and no blocks. To be called once."""
        children = [self._fork(choice) for choice in range(1, self.num_forks + 1)]
        self._forked = True
        return children

    def append(self, token_id: int) -> str | None:
        """Add a drawn token; return why generation ends with it ("STOP", "LENGTH"), or None."""
        self.token_ids.append(token_id)
        if self._stops(token_id):
            return "STOP"
        return "LENGTH" if len(self.token_ids) >= self.max_length else None

    def _fork(self, choice: int) -> "Generation":
        child = Generation(
            self.request_id,
            self.token_ids,
            self.sampling,
            self.max_length,
            priority=self.priority,
            client=self.client,
            deadline=self.deadline,
        )
        child.choice = choice
        child.arrival = self.arrival
        child.block_digests.extend(self.block_digests)
        child.num_cached = self.num_cached
        child._forked = True
        return child

    def _stops(self, token_id: int) -> bool:
        sampling = self.sampling
        if self.num_output <= sampling.min_tokens:
            return False
        return token_id in sampling.stop_ids or any(
            token_id == ids[-1] and self._ends_with(ids, since=self.num_prompt) for ids in sampling.stop_sequences
        )

    def _ends_with(self, ids: tuple[int, ...], *, since: int) -> bool:
        start = len(self.token_ids) - len(ids)
        return start >= since and tuple(self.token_ids[start:]) == ids


class Scoring(Sequence):
    """Teacher-forced log-probabilities of targets after a context; the last target is never an input."""

    __slots__ = ("alternatives", "logprobs", "num_context")

    def __init__(self, request_id: int, context_ids: list[int], target_ids: list[int], **request: Any) -> None:
        super().__init__(request_id, context_ids + target_ids, **request)
        self.num_context = len(context_ids)
        self.logprobs: list[float] = []  # of the targets so far; kept over a preemption
        self.alternatives: list[list[tuple[int, float]]] = []  # the likeliest id in each of their places

    @property
    def num_inputs(self) -> int:
        return len(self.token_ids) - 1

    @property
    def is_scored(self) -> bool:
        return True

    @property
    def first_needed(self) -> int:
        return self.num_context - 1 + len(self.logprobs)


class Embedding(Sequence):
    """Hidden states pooled over all ids ("mean"), or that of the last ("last")."""

    __slots__ = ("normalize", "num_pooled", "pooling", "total")

    def __init__(self, request_id: int, ids: list[int], pooling: str, normalize: bool, **request: Any) -> None:
        super().__init__(request_id, ids, **request)
        self.pooling = pooling
        self.normalize = normalize
        self.total: Any = 0.0  # sum of the states pooled so far, a tensor (H,) fp64; kept over a preemption
        self.num_pooled = 0 if pooling == "mean" else len(ids) - 1  # positions whose states are in, or are not wanted

    @property
    def num_inputs(self) -> int:
        return len(self.token_ids)

    @property
    def first_needed(self) -> int:
        return self.num_pooled
