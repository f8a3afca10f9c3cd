"""How long a step will take, learned from those before it, and how much prefill it may therefore carry."""

import math
from dataclasses import dataclass

import numpy as np

from services.inference.sequence import Sequence

_PRIOR_MS = (50.0, 2.0, 0.01, 5.0, 0.005)  # what a feature may cost: wide, one measured step says more
_DRIFT = 0.01  # per step, as a share of the above: load on the machine comes and goes
_NOISE = 0.1  # of a step's time: the longer it took the less it says, so a hiccup is no trend


@dataclass(slots=True)
class StepLoad:
    """What a step computes, as far as its time depends on it."""

    num_decodes: int = 0
    decode_keys: int = 0  # read by all decodes
    prefill_rows: int = 0  # tokens of prompts, and once more those whose logits are needed
    prefill_keys: float = 0.0  # read by all of these: rows times keys

    def add_prefill(self, seq: Sequence, num_tokens: int) -> None:
        end = seq.num_computed + num_tokens
        num_scored = max(end - max(seq.first_needed, seq.num_computed), 0) if seq.is_scored else 0
        self.prefill_rows += num_tokens + num_scored
        self.prefill_keys += (num_tokens + num_scored) * (end - num_tokens / 2)


class StepTime:
    """Milliseconds = fixed + per decode + per key read + per prefill row + per key that such a row reads.

    A Kalman filter over the five costs, which drift slowly; none is ever negative. It forgets what steps no longer
    show only as far as the drift goes, so a long quiet time does not wipe out what a prefill costs.
    Source: Kalman 1960; recursive least squares with a random walk, Ljung 1999, section 11.6.
    """

    def __init__(self) -> None:
        self._costs = np.array((0.0, 0.0, 0.0, 1.0, 0.0))
        self._prior = np.square(_PRIOR_MS)
        self._covariance = np.diag(self._prior)

    def observe(self, load: StepLoad, ms: float) -> None:
        """A step of `load` took `ms`."""
        x = _features(load)
        variance = self._covariance.diagonal()
        self._covariance += np.diag(np.where(variance < self._prior, self._prior * _DRIFT**2, 0.0))
        gain = self._covariance @ x
        expected = float(x @ gain) + (_NOISE * ms) ** 2 + 1e-6
        surprise = ms - float(x @ self._costs)
        self._costs = np.maximum(self._costs + gain * (surprise / expected), 0.0)
        self._covariance -= np.outer(gain, gain) / expected

    def ms(self, load: StepLoad) -> float:
        return float(_features(load) @ self._costs)

    def prefill_ms(self, rows: float, start: int) -> float:
        """What `rows` consecutive tokens, the first at position `start`, add to a step."""
        _, _, _, row, key = self._costs
        return float(row * rows + key * rows * (start + rows / 2))

    def prefill_rows(self, ms: float, start: int) -> int:
        """The most rows, the first at position `start`, that add no more than `ms`."""
        _, _, _, row, key = (float(cost) for cost in self._costs)
        linear, square = row + key * start, key / 2
        if ms <= 0:
            return 0
        if square * ms < 1e-9 * linear * linear:
            return int(min(ms / linear, 1 << 30))
        if square == 0:
            return 1 << 30
        return int((math.sqrt(linear * linear + 4 * square * ms) - linear) / (2 * square))


def _features(load: StepLoad) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    return np.array((1.0, load.num_decodes, load.decode_keys, load.prefill_rows, load.prefill_keys))


class StepBudget:
    """What is left of a step: tokens and, where streams wait for its end, milliseconds.

    The first prefill of a step gets at least `quantum` tokens, so prompts always go on; others get whole quanta, or
    what they lack.
    """

    def __init__(self, num_tokens: int, ms: float, quantum: int, time: StepTime) -> None:
        self.num_tokens = num_tokens
        self.ms = ms
        self._quantum = quantum
        self._time = time
        self._untouched = True

    @property
    def is_spent(self) -> bool:
        return self.num_tokens == 0 or (self.ms <= 0 and not self._untouched)

    def take(self, start: int, num_pending: int, *, rows_per_token: int) -> int:
        """How many of `num_pending` tokens from position `start` on the step computes; 0 when it is full."""
        num_tokens = min(num_pending, self.num_tokens)
        if self.ms < math.inf:
            affordable = self._time.prefill_rows(self.ms, start) // rows_per_token
            if self._untouched:
                affordable = max(affordable, self._quantum)
            if affordable < num_tokens:
                num_tokens = affordable - affordable % self._quantum
        if num_tokens:
            self._untouched = False
            self.num_tokens -= num_tokens
            self.ms -= self._time.prefill_ms(num_tokens * rows_per_token, start)
        return num_tokens
