"""Shuffling without a table: the place of any item, in constant memory, the same with every version of every library.

A Feistel network permutes the numbers below a power of four; what falls outside the range goes through it again until
it falls inside (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6


def permuted(items: NDArray[np.integer], size: int, key: int) -> NDArray[np.int64]:
    """Where each of `items`, numbers below `size`, stands in the order of `key` (64 bits): one to one."""
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))  # bits
    keys = _mix(np.uint64(key & _MASK) + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _GOLDEN)
    places = _encrypted(items.astype(np.uint64), half, keys)
    while (outside := places >= size).any():
        places[outside] = _encrypted(places[outside], half, keys)
    return places.astype(np.int64)


def _encrypted(values: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    low = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & low
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & low)
    return (left << half) | right


_MASK = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: every bit in changes about half of the bits out."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
