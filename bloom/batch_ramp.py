"""A batch that grows with the samples consumed, in steps. Torch-free: the trainer and the planner share it.

Source: Megatron-DeepSpeed's megatron/microbatches.py (RampupBatchsizeNumMicroBatches), in whole numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plateau:
    """A batch size and how many steps are taken at it."""

    batch: int  # sequences
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRamp:
    """From `start` by `increment` to `full` sequences, spread evenly over the first `samples` sequences.

    Raises ValueError, naming value and remedy, for a ramp that does not arrive at `full`.
    """

    start: int
    increment: int
    samples: int
    full: int  # the global batch after the ramp

    def __post_init__(self) -> None:
        for key in ("start", "increment", "full"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} of a batch ramp is no batch; use at least 1 sequence")
        if self.samples < 0:
            raise ValueError(f"samples={self.samples} of a batch ramp is below zero; use 0 or more")
        if self.start > self.full:
            raise ValueError(f"start={self.start} is above the full batch {self.full}; start at {self.full} or below")
        if (self.full - self.start) % self.increment:
            nearest = self.full - (self.full - self.start) // self.increment * self.increment
            raise ValueError(
                f"steps of {self.increment} from {self.start} miss the full batch {self.full}; start at {nearest}"
            )

    @classmethod
    def parse(cls, text: str, full: int) -> "BatchRamp":
        """Read "START,INCREMENT,SAMPLES", as Megatron's --rampup-batch-size takes them. Raises ValueError."""
        try:
            start, increment, samples = (int(part) for part in text.split(","))
        except ValueError:
            raise ValueError(
                f"batch ramp {text!r} is not START,INCREMENT,SAMPLES; write for example 192,16,9765625"
            ) from None
        return cls(start=start, increment=increment, samples=samples, full=full)

    @property
    def num_increments(self) -> int:
        return (self.full - self.start) // self.increment

    def batch_at(self, consumed: int) -> int:
        """Sequences of the step that begins when `consumed` sequences have been seen."""
        if consumed > self.samples or self.samples == 0:
            return self.full
        return self.start + consumed * self.num_increments // self.samples * self.increment

    def plateaus(self) -> Iterator[Plateau]:
        """The batches below `full`, in order; all later steps are at `full`."""
        consumed = 0
        while (batch := self.batch_at(consumed)) < self.full:
            reached = (batch - self.start) // self.increment
            next_rise = -(-(reached + 1) * self.samples // self.num_increments)  # samples at which the batch grows
            steps = -(-(next_rise - consumed) // batch)
            yield Plateau(batch, steps)
            consumed += steps * batch

    def consumed_after(self, steps: int) -> int:
        """Sequences seen in the first `steps` steps."""
        consumed = 0
        for plateau in self.plateaus():
            if steps <= plateau.steps:
                return consumed + steps * plateau.batch
            consumed += plateau.steps * plateau.batch
            steps -= plateau.steps
        return consumed + steps * self.full

    def num_steps(self, samples: int) -> int:
        """Whole steps that `samples` sequences are enough for."""
        steps = 0
        for plateau in self.plateaus():
            if samples < plateau.steps * plateau.batch:
                return steps + samples // plateau.batch
            samples -= plateau.steps * plateau.batch
            steps += plateau.steps
        return steps + samples // self.full
