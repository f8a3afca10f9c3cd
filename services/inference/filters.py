"""Which tokens of one row of logits may be drawn, and which one is. Plain NumPy: a row stays in the core's cache.

V = drawable vocabulary, C = candidates left by the filters

Every filter is one threshold, found without sorting the row, so ties are kept whole and nothing depends on how a sort
orders them. They apply in transformers' order: temperature, top-k, top-p, min-p, typical.
"""

import math

import numpy as np
from numpy.typing import NDArray

from services.inference.sampling import SamplingParams

Row = NDArray[np.float32]
Ids = NDArray[np.int64]

_GROUP = 512  # ids summed before anything is accumulated in float64
_FEW = 2048  # values that are sorted without further ado
_BUCKETS = 1024
_LEAST_TEMPERATURE = 1e-30  # keeps x / temperature from 0 / 0; greedy long before


def draw(logits: Row, params: SamplingParams, uniform: float) -> int:
    """The id at which the cumulative distribution of what the filters keep first exceeds `uniform`, in [0, 1).

    In vocabulary order, so that the same number gives the same id. The temperature is above 0.
    """
    ids, weights = candidates(logits, params)
    if ids is None:
        return _invert(weights, uniform)
    cumulative = weights.cumsum(dtype=np.float64)
    place = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(ids[min(place, _last_weighted(cumulative))])


def candidates(logits: Row, params: SamplingParams) -> tuple[Ids | None, Row]:
    """Ids (C,) that the filters keep, ascending, and their unnormalised probabilities. None: all V, unfiltered."""
    temperature = np.float32(max(params.temperature, _LEAST_TEMPERATURE))
    peak = logits.max()
    ids, kept = None, logits

    def keep(chosen: Ids) -> None:
        nonlocal ids, kept
        ids, kept = chosen if ids is None else ids[chosen], kept[chosen]

    if 0 < params.top_k < kept.size:
        keep(np.flatnonzero(kept >= kth_largest(kept, params.top_k)))
    if params.top_p < 1:
        keep(_nearest(kept, _weights(kept, peak, temperature), float(peak), params.top_p))
    if params.min_p > 0:
        keep(np.flatnonzero(kept >= peak + temperature * np.float32(math.log(params.min_p))))
    if params.typical_p < 1:
        weights = _weights(kept, peak, temperature)
        keep(_nearest(kept, weights, _mean(kept, peak, weights), params.typical_p))
    return ids, _weights(kept, peak, temperature)


def log_normalizer(logits: Row) -> float:
    """Natural logarithm of the sum of exp(logits)."""
    peak = logits.max()
    return float(peak) + math.log(_sum(_weights(logits, peak, np.float32(1))))


def largest(logits: Row, k: int) -> Ids:
    """Ids of the `k` largest, largest first; of equal ones the lower ids."""
    ids = np.flatnonzero(logits >= kth_largest(logits, k))
    ranked: Ids = ids[np.argsort(-logits[ids], kind="stable")]
    return ranked[:k]


def kth_largest(values: Row, k: int) -> np.float32:
    """The `k`-th largest of `values`, 1 <= k <= their number.

    The k-th largest of the maxima of groups is at most that: k groups have a value as large. So only what reaches it
    is looked at, which in a row without order is little more than k values.
    """
    group = min(values.size // (4 * k), _GROUP)
    if group >= 4:
        maxima = np.maximum.reduceat(values, np.arange(0, values.size, group))
        values = values[values >= np.partition(maxima, -k)[-k]]
    kth: np.float32 = np.partition(values, -k)[-k]
    return kth


def _weights(logits: Row, peak: np.float32, temperature: np.float32) -> Row:
    """exp((logits - peak) / temperature): 1 at the peak."""
    weights: Row = logits - peak
    if temperature != 1:
        with np.errstate(over="ignore"):  # a tiny temperature makes -inf, never NaN
            weights /= temperature
    np.exp(weights, out=weights)
    return weights


def _nearest(logits: Row, weights: Row, centre: float, mass: float) -> Ids:
    """Indices of the tokens whose logits are nearest to `centre`, the fewest with at least `mass` of the weight.

    At the highest logit that is the nucleus (Holtzman et al. 2020, section 3.1). At the mean logit it is the locally
    typical set (Meister et al. 2023, section 4): surprise minus entropy is mean minus logit, over the temperature.

    Tokens lighter than (1 - mass) / size weigh less than 1 - mass together, so the set lies among the others, if these
    reach below the centre as far as above; usually among those much heavier as well, which is tried first.
    """
    total = _sum(weights)
    least = 0.5 * (1 - mass) * total / weights.size  # half: rounding must not cut
    for floor in (64 * least, 8 * least, least, 0.0):
        heavy = np.flatnonzero(weights > floor)
        near = logits[heavy]
        enough = weights[heavy].sum(dtype=np.float64) >= mass * total
        if floor == 0 or (enough and near.max() + near.min() <= 2 * centre):
            break
    distances = np.abs(near - np.float32(centre))
    kept: Ids = heavy[distances <= _mass_threshold(distances, weights[heavy], mass * total)]
    return kept


def _mean(logits: Row, peak: np.float32, weights: Row) -> float:
    """The mean logit, by probability."""
    below = np.where(weights > 0, logits - peak, np.float32(0))  # from the peak: exact where it counts; no 0 * inf
    return float(peak) + float(weights @ below) / _sum(weights)


def _mass_threshold(keys: Row, weights: Row, target: float) -> np.float32:
    """The least key up to which (inclusive) the weights sum to `target` or more.

    A histogram of the keys says in which bucket that is; only the few keys in one bucket are sorted.
    """
    while keys.size > _FEW and (low := keys.min()) < (high := keys.max()):
        buckets = ((keys - low) * (_BUCKETS / (high - low))).astype(np.int64)
        cumulative = np.bincount(buckets, weights).cumsum()
        bucket = min(int(np.searchsorted(cumulative, target)), _last_weighted(cumulative))
        target -= cumulative[bucket - 1] if bucket else 0.0
        inside = buckets == bucket
        keys, weights = keys[inside], weights[inside]
    order = keys.argsort()
    cumulative = weights[order].cumsum(dtype=np.float64)
    place = min(int(np.searchsorted(cumulative, target)), keys.size - 1)
    threshold: np.float32 = keys[order[place]]
    return threshold


def _invert(weights: Row, uniform: float) -> int:
    """Where the cumulative weight first exceeds `uniform` of the total; two levels, groups and one group's ids."""
    outer = _group_sums(weights).cumsum()  # (V / 512,)
    target = uniform * outer[-1]
    group = min(int(np.searchsorted(outer, target, side="right")), _last_weighted(outer))
    inner = weights[group * _GROUP : (group + 1) * _GROUP].cumsum(dtype=np.float64)
    before = outer[group - 1] if group else 0.0
    within = min(int(np.searchsorted(inner, target - before, side="right")), _last_weighted(inner))
    return group * _GROUP + within


def _sum(weights: Row) -> float:
    return float(_group_sums(weights).sum())


def _group_sums(weights: Row) -> NDArray[np.float64]:
    """Sums of 512 weights each, the last of what is left: a flat sum in float64 is slow, one in float32 inexact."""
    whole = weights.size // _GROUP * _GROUP
    sums = np.einsum("ij->i", weights[:whole].reshape(-1, _GROUP))
    return np.append(sums.astype(np.float64), weights[whole:].sum(dtype=np.float64))


def _last_weighted(cumulative: NDArray[np.float64]) -> int:
    """Index of the last entry with any weight: rounding between two levels must not lead past it."""
    return int(np.searchsorted(cumulative, cumulative[-1]))
