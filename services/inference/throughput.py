"""Events per second."""

import math


class Rate:
    """Events per second since `now`, those of the last `window_s` seconds counting most."""

    def __init__(self, window_s: float, now: float) -> None:
        self._window_s = window_s
        self._start = now
        self._last = now
        self._sum = 0.0

    def add(self, count: int, now: float) -> None:
        self._sum = self._decayed(now) + count
        self._last = now

    def per_s(self, now: float) -> float:
        covered_s = self._window_s * -math.expm1((self._start - now) / self._window_s)
        return self._decayed(now) / covered_s if covered_s > 0 else 0.0

    def _decayed(self, now: float) -> float:
        return self._sum * math.exp((self._last - now) / self._window_s)
