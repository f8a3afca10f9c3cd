"""64 bits of a text, of words, of runs of them."""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)  # of splitmix64


def hash64(text: str) -> int:
    return int.from_bytes(_digest(text), "little")


def hash_words(words: Iterable[str]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(map(_digest, words)), "<u8").astype(np.uint64)


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def mixed(windows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One hash per row; every bit depends on all of the row."""
    hashes = np.zeros(len(windows), np.uint64)
    for column in windows.T:
        hashes = (hashes ^ column) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    hashes *= _MULTIPLIER
    return hashes ^ (hashes >> np.uint64(32))
