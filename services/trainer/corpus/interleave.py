"""Which source the n-th sample comes from, so that every source has its share of every prefix, to within one sample.

With weight w, a source's j-th sample (from 0) comes neither before sample floor(j / w) nor after ceil((j + 1) / w) - 1:
just then it has floor(n w) or ceil(n w) of the first n. Serving whose time ends first always succeeds: Tijdeman 1980,
"The chairman assignment problem"; Baruah et al. 1996, "Proportionate progress". The greedy rule of Megatron's
BlendedDataset can fall more than a sample behind, and has to be followed from the first sample on; here a period is
tabled once, and any sample looked up.
"""

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from services.trainer.failure import JobFailure

MAX_PERIOD = 1_000_000  # samples; about a second to table


class Interleave:
    """A periodic order of sources."""

    def __init__(self, weights: Sequence[Fraction]) -> None:
        """weights: any that are positive. Raises JobFailure where one is below one sample in MAX_PERIOD."""
        total = sum(weights)
        parts = _parts([weight / total for weight in weights])
        self._period = sum(parts)
        self.shares = [Fraction(part, self._period) for part in parts]  # of all samples: the weights', or rounded
        self._source = np.empty(self._period, np.int32)
        self._before = np.empty(self._period, np.int32)  # samples of the same source, earlier in the period
        self._parts = parts
        self._table()

    def at(self, sample: int) -> tuple[int, int]:
        """The source of a sample, and how many samples it gave before."""
        periods, rest = divmod(sample, self._period)
        source = int(self._source[rest])
        return source, periods * self._parts[source] + int(self._before[rest])

    def _table(self) -> None:
        period, parts = self._period, self._parts
        waiting = [(0, source) for source in range(len(parts))]  # (from which sample on, source): a heap
        ready: list[tuple[int, int]] = []  # (before which sample, source): a heap
        given = [0] * len(parts)
        for sample in range(period):
            while waiting and waiting[0][0] <= sample:
                _, source = heapq.heappop(waiting)
                heapq.heappush(ready, (-(-(given[source] + 1) * period // parts[source]), source))
            _, source = heapq.heappop(ready)
            self._source[sample], self._before[sample] = source, given[source]
            given[source] += 1
            if given[source] < parts[source]:
                heapq.heappush(waiting, (given[source] * period // parts[source], source))


def _parts(shares: list[Fraction]) -> list[int]:
    """Shares as whole numbers of a period's samples: exactly where a period allows it, else rounded."""
    period = math.lcm(*(share.denominator for share in shares))
    if period <= MAX_PERIOD:
        return [int(share * period) for share in shares]
    parts = [int(share * MAX_PERIOD) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: parts[i] - shares[i] * MAX_PERIOD)
    for i in by_remainder[: MAX_PERIOD - sum(parts)]:
        parts[i] += 1
    if min(parts) == 0:
        share = float(shares[parts.index(0)])
        what = f"a source's share of {share:.2g} is below one sample in {MAX_PERIOD:,}"
        raise JobFailure("BAD_DATA", f"{what}; raise its weight, or leave it out", "datasets")
    return parts
