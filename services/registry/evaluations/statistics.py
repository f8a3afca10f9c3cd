"""Standard errors of bits per byte and of mean scores, and whether two versions differ by more than chance.

Bits per byte are a ratio of sums over texts, sum(bits) / sum(bytes). Its standard error is that of a ratio estimator,
by linearisation: texts are taken to be drawn one by one, and long ones count for more. Source: Cochran 1977, Sampling
Techniques, section 2.11. Where all texts have as many bytes it is the standard error of a mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PAIRED_T, WELCH_T, Z = "PAIRED_T", "WELCH_T", "Z"
MAX_TERMS = 100_000  # of the continued fraction; it takes about the square root of the degrees of freedom


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    value: float
    standard_error: float | None  # None: not known
    n: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Significance:
    """Of a difference: two-sided, that it is zero."""

    test: str
    standard_error: float
    p_value: float
    n: int | None = None  # texts that were compared in pairs


def estimate(documents: NDArray[np.float64]) -> Estimate:
    """The ratio of the sums of texts (n, 2): bits, bytes; or scores, weights."""
    scores, weights = documents.T
    value, error = _ratio(scores, weights)
    return Estimate(value=value, standard_error=error, n=len(documents))


def _ratio(numerators: NDArray[np.float64], denominators: NDArray[np.float64]) -> tuple[float, float | None]:
    """sum / sum, and its standard error; None for a single text."""
    n, total = len(numerators), float(denominators.sum())
    value = float(numerators.sum()) / total
    if n < 2:
        return value, None
    residuals = numerators - value * denominators
    return value, math.sqrt(n / (n - 1) * float(residuals @ residuals)) / total


def paired(documents: NDArray[np.float64], base: NDArray[np.float64]) -> Significance | None:
    """Of the difference of the same texts' ratios; None where they are not the same texts, or one alone."""
    if documents.shape != base.shape or len(base) < 2 or not np.array_equal(documents[:, 1], base[:, 1]):
        return None
    difference, error = _ratio(documents[:, 0] - base[:, 0], base[:, 1])
    assert error is not None
    p_value = two_sided_t(_in_errors(difference, error), len(base) - 1)
    return Significance(test=PAIRED_T, standard_error=error, p_value=p_value, n=len(base))


def unpaired(one: Estimate, base: Estimate) -> Significance | None:
    """Of the difference of two estimates; None where a standard error is not known.

    Source: Welch 1947, The generalization of Student's problem, for the degrees of freedom.
    """
    if one.standard_error is None or base.standard_error is None:
        return None
    error = math.hypot(one.standard_error, base.standard_error)
    statistic = _in_errors(one.value - base.value, error)
    if one.n is None or base.n is None or one.n < 2 or base.n < 2:
        return Significance(test=Z, standard_error=error, p_value=math.erfc(abs(statistic) / math.sqrt(2)))
    parts = [found.standard_error**2 for found in (one, base) if found.standard_error is not None]
    spread = parts[0] ** 2 / (one.n - 1) + parts[1] ** 2 / (base.n - 1)
    freedom = sum(parts) ** 2 / spread if spread else math.inf
    return Significance(test=WELCH_T, standard_error=error, p_value=two_sided_t(statistic, freedom))


def _in_errors(difference: float, error: float) -> float:
    """A difference in standard errors; where nothing varies, any difference is certain."""
    if error:
        return difference / error
    return math.copysign(math.inf, difference) if difference else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted, in the given order: called significant below a level, one falsely with at most that probability.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = least
    return adjusted


def two_sided_t(statistic: float, freedom: float) -> float:
    """P(|T| >= |statistic|) of Student's T. Source: DLMF 8.17 (i); Abramowitz and Stegun 26.7.1."""
    if math.isinf(statistic):
        return 0.0
    if math.isinf(freedom):
        return math.erfc(abs(statistic) / math.sqrt(2))
    square = statistic * statistic
    x, rest = freedom / (freedom + square), square / (freedom + square)
    return min(1.0, max(0.0, _incomplete_beta(freedom / 2, 0.5, x, rest)))


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """I_x(a, b), with rest = 1 - x, which loses digits where it is computed from x."""
    if rest == 0.0 or x == 0.0:
        return 1.0 if rest == 0.0 else 0.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * _log(x, rest) + b * _log(rest, x))
    if x < (a + 1) / (a + b + 2):
        return front * _continued_fraction(a, b, x) / a
    return 1.0 - front * _continued_fraction(b, a, rest) / b


def _log(x: float, rest: float) -> float:
    return math.log1p(-rest) if x > 0.5 else math.log(x)


def _continued_fraction(a: float, b: float, x: float) -> float:
    """DLMF 8.17.22, by Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1.0 / ((1.0 - (a + b) * x / (a + 1)) or tiny)
    value = d
    for m in range(1, MAX_TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / ((1.0 + term * d) or tiny)
            c = (1.0 + term / c) or tiny
            value *= d * c
        if abs(d * c - 1.0) < 1e-15:
            break
    return value
