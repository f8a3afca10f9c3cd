"""Learning rate: linear warm-up, then cosine to a minimum. A pure function, so that a resumed run needs no state."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Counted in steps here, in samples by the published runs: any unit, as long as all three are the same."""

    peak: float
    minimum: float
    warmup: float
    total: float

    def at(self, n: float) -> float:
        """Learning rate of the n-th unit (1 for the first step). Source: Megatron-LM, learning_rates.py."""
        if n <= self.warmup:
            return self.peak * n / self.warmup
        if n > self.total:
            return self.minimum
        done = (n - self.warmup) / (self.total - self.warmup)
        return self.minimum + 0.5 * (self.peak - self.minimum) * (1 + math.cos(math.pi * done))
