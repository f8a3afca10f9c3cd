"""SimHash: 64 bits of a text that differ little where texts differ little.

Source: Manku, Jain, Das Sarma 2007, Detecting near-duplicates for web crawling; settings of
bigscience-workshop/data-preparation@9d058841, 01b_oscar_cleaning_and_filtering/deduplicate/conf. The hash of a shingle
is ours, for it is taken of all shingles at once.
"""

from itertools import combinations

import numpy as np
import regex
from numpy.typing import NDArray

from services.trainer.cleaning.hashes import hash_words, mixed

WINDOW = 6  # characters of a shingle, or words in English
MAX_DISTANCE = 4  # bits
NUM_BLOCKS = 6
_EDGES = np.linspace(0, 64, NUM_BLOCKS + 1).astype(int)
_PUNCTUATION = regex.compile(r"\p{P}")
_CHUNK = 1 << 14  # shingles at a time: their bits take 1 MB


def simhash(text: str, language: str) -> int | None:
    """None for a text shorter than a shingle: such texts are never near-duplicates."""
    plain = _PUNCTUATION.sub("", text.lower())
    units = hash_words(plain.split()) if language == "en" else _characters(plain)
    if len(units) < WINDOW:
        return None
    hashes = mixed(np.lib.stride_tricks.sliding_window_view(units, WINDOW))
    ones = np.zeros(64, np.int64)
    for start in range(0, len(hashes), _CHUNK):
        chunk = hashes[start : start + _CHUNK]
        ones += np.unpackbits(chunk.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little").sum(
            axis=0, dtype=np.int64
        )
    bits = np.packbits(2 * ones > len(hashes), bitorder="little")
    return int.from_bytes(bits.tobytes(), "little")


def near_pairs(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Pairs (i, j) of different hashes at most MAX_DISTANCE bits apart, all of them.

    That many bits lie in as many blocks, so two blocks at least are equal: only hashes that share two are compared.
    """
    found = [_pairs_sharing(hashes, blocks) for blocks in combinations(range(NUM_BLOCKS), NUM_BLOCKS - MAX_DISTANCE)]
    return np.unique(np.concatenate(found), axis=0)


def _pairs_sharing(hashes: NDArray[np.uint64], blocks: tuple[int, ...]) -> NDArray[np.int64]:
    keys = hashes & np.uint64(sum(_mask(block) for block in blocks))
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    found = [np.empty((0, 2), np.int64)]
    for shift in range(1, len(keys)):
        alike = np.flatnonzero(keys[shift:] == keys[:-shift])
        if not len(alike):
            break
        pairs = np.sort(np.stack((order[alike], order[alike + shift]), axis=1), axis=1)
        distance = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])
        found.append(pairs[distance <= MAX_DISTANCE])
    return np.concatenate(found)


def _mask(block: int) -> int:
    return (1 << int(_EDGES[block + 1])) - (1 << int(_EDGES[block]))


def _characters(text: str) -> NDArray[np.uint64]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
