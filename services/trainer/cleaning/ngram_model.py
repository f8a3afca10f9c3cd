"""A classifier of languages: multinomial naive Bayes over hashed n-grams of 1 to 4 characters.

Counting is all its training, so it needs no seed and gives the same bits anywhere; it is kept as a small .npz.
C = classes, V = buckets, G = different n-grams of a text.
"""

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import regex
from numpy.typing import NDArray

NUM_BUCKETS = 1 << 16
MAX_N = 4
SMOOTHING = 0.1  # counts that every n-gram has in every class beforehand
MIN_COUNT = 2  # n-grams seen less often in a class are forgotten
STEP = 1 / 16  # of the logarithms kept, one byte each
_NO_LETTERS = regex.compile(r"[^\p{L}\p{M}]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class NgramModel:
    """`gain[v, c]` steps is log P(v | c) above what an unseen n-gram has in that class, `floor[c]`."""

    classes: tuple[str, ...]
    floor: NDArray[np.float32]  # (C,)
    gain: NDArray[np.uint8]  # (V, C)
    temperature: float  # of the square root of a text's n-grams: they overlap, so their evidence does

    def probabilities(self, text: str) -> NDArray[np.float64]:
        """(C,) of what a text may be."""
        return softmax(self.evidence(text) / self.temperature)

    def evidence(self, text: str) -> NDArray[np.float64]:
        """(C,) log-likelihood per square root of the n-grams."""
        found, counts = np.unique(buckets(text), return_counts=True)  # (G,)
        weights = np.log1p(counts).astype(np.float32)
        # Not by BLAS: whose threads get in each other's way where every process has a text of its own.
        gains = np.einsum("g,gc->c", weights, self.gain[found], dtype=np.float32) * np.float32(STEP)  # (C,)
        return np.asarray((gains + weights.sum() * self.floor) / np.sqrt(weights.sum()), np.float64)

    def save(self, path: Path) -> None:
        """Of `gain` only what is not zero, class by class, and of its places the gaps between them."""
        rows = [np.flatnonzero(column) for column in self.gain.T]
        np.savez_compressed(
            path,
            allow_pickle=False,
            classes=np.array(self.classes),
            floor=self.floor,
            temperature=np.float64(self.temperature),
            sizes=np.array([len(row) for row in rows], np.uint16),
            gaps=np.concatenate([np.diff(row, prepend=0) for row in rows]).astype(np.uint16),
            gain=np.concatenate([self.gain[row, c] for c, row in enumerate(rows)]),
        )

    @classmethod
    def load(cls, path: Path) -> "NgramModel":
        with np.load(path, allow_pickle=False) as arrays:
            gain = np.zeros((NUM_BUCKETS, len(arrays["classes"])), np.uint8)
            ends = np.cumsum(arrays["sizes"], dtype=np.int64)[:-1]
            parts = zip(np.split(arrays["gaps"], ends), np.split(arrays["gain"], ends), strict=True)
            for c, (gaps, gains) in enumerate(parts):
                gain[np.cumsum(gaps, dtype=np.int64), c] = gains
            classes = tuple(str(name) for name in arrays["classes"])
            return cls(classes, arrays["floor"], gain, float(arrays["temperature"]))


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the last dimension."""
    likelihoods = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(likelihoods / likelihoods.sum(axis=-1, keepdims=True))


def train(texts: Mapping[str, Iterable[str]], temperature: float = 1.0) -> NgramModel:
    """Count the n-grams of each class's texts."""
    counts = np.stack([_counts(parts) for parts in texts.values()], axis=1)  # (V, C)
    counts[counts < MIN_COUNT] = 0
    floor = np.log(SMOOTHING / (counts.sum(axis=0) + SMOOTHING * NUM_BUCKETS))
    gain = np.round(np.log1p(counts / SMOOTHING) / STEP)
    return NgramModel(tuple(texts), floor.astype(np.float32), gain.astype(np.uint8), temperature)


def _counts(texts: Iterable[str]) -> NDArray[np.float64]:
    total = np.zeros(NUM_BUCKETS)
    for text in texts:
        total += np.bincount(buckets(text), minlength=NUM_BUCKETS)
    return total


def buckets(text: str) -> NDArray[np.int64]:
    """The bucket of each n-gram of 1 to MAX_N characters, in lower case, a space for whatever is no letter."""
    plain = " " + _NO_LETTERS.sub(" ", unicodedata.normalize("NFC", text).lower()).strip() + " "
    characters = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    found = []
    hashes = np.zeros(len(characters) + 1, np.uint64)
    for n in range(1, MAX_N + 1):
        hashes = (hashes[: len(characters) - n + 1] ^ characters[n - 1 :]) * _MULTIPLIER
        found.append((hashes ^ (hashes >> np.uint64(32))) >> np.uint64(16) & np.uint64(NUM_BUCKETS - 1))
    return np.concatenate(found).astype(np.int64)
