"""A request inside the engine: its token ids, the blocks it holds and how far it is computed."""

from array import array

from services.inference.sampling import SamplingParams


class Sequence:
    """What the scheduler and the block manager know of a request.

    Inputs are the first `num_inputs` tokens: those that must pass through the model. `first_logits` is the position
    of the first input whose logits are still needed, so blocks before it may come from the prefix cache.
    """

    __slots__ = (
        "block_digests",
        "block_table",
        "num_cached",
        "num_computed",
        "num_registered",
        "request_id",
        "token_ids",
    )

    def __init__(self, request_id: int, token_ids: list[int]) -> None:
        self.request_id = request_id
        self.token_ids = array("q", token_ids)
        self.block_table = array("i")
        self.block_digests: list[bytes] = []  # content hash of each full block, chained
        self.num_registered = 0  # full blocks that the prefix cache was told of
        self.num_computed = 0  # inputs whose keys and values lie in the cache
        self.num_cached: int | None = None  # of these, answered by the prefix cache when first admitted

    @property
    def num_inputs(self) -> int:
        raise NotImplementedError

    @property
    def first_logits(self) -> int:
        raise NotImplementedError

    @property
    def num_pending(self) -> int:
        """Inputs still to be computed."""
        return self.num_inputs - self.num_computed


class Generation(Sequence):
    """Draws tokens until a stop id, `max_tokens`, or `max_sequence_tokens` in all."""

    __slots__ = ("max_length", "num_prompt", "sampling")

    def __init__(
        self, request_id: int, prompt_ids: list[int], sampling: SamplingParams, max_sequence_tokens: int
    ) -> None:
        super().__init__(request_id, prompt_ids)
        self.sampling = sampling
        self.num_prompt = len(prompt_ids)
        self.max_length = min(self.num_prompt + sampling.max_tokens, max_sequence_tokens)

    @property
    def num_inputs(self) -> int:
        return len(self.token_ids)

    @property
    def first_logits(self) -> int:
        return len(self.token_ids) - 1

    def append(self, token_id: int) -> str | None:
        """Add a drawn token; return why generation ends with it ("STOP", "LENGTH"), or None."""
        self.token_ids.append(token_id)
        if token_id in self.sampling.stop_ids:
            return "STOP"
        return "LENGTH" if len(self.token_ids) >= self.max_length else None


class Scoring(Sequence):
    """Teacher-forced log-probabilities of targets after a context; the last target is never an input."""

    __slots__ = ("best", "logprobs", "num_context")

    def __init__(self, request_id: int, context_ids: list[int], target_ids: list[int]) -> None:
        super().__init__(request_id, context_ids + target_ids)
        self.num_context = len(context_ids)
        self.logprobs: list[float] = []  # of the targets so far; kept over a preemption
        self.best: list[tuple[int, float]] = []  # the likeliest id at each of their places

    @property
    def num_inputs(self) -> int:
        return len(self.token_ids) - 1

    @property
    def first_logits(self) -> int:
        return self.num_context - 1 + len(self.logprobs)
