"""Text that a dataset shares with one that is held out: what is measured on that then tells less.

Texts overlap where a run of NGRAM words is in both, or where they are the same as a whole. A Chinese character is one.
Case, punctuation and width do not count. Source: Brown et al. 2020, Language Models are Few-Shot Learners, appendix C
(13-grams).
"""

import unicodedata
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from services.trainer.cleaning.hashes import hash_words, mixed
from services.trainer.dataset_report.rows import Row

NGRAM = 13  # words
FIRST = 5  # pairs that are named
_WORDS = regex.compile(r"\p{Han}|[\p{L}\p{M}\p{N}--\p{Han}]+", regex.V1)
Hashes = NDArray[np.uint64]


class HeldOut:
    """A dataset that is held out, and what is found of it elsewhere."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._added: list[Hashes] = []
        self._added_rows: list[NDArray[np.int64]] = []  # of each n-gram
        self._num_rows = 0
        self._pairs: list[dict[str, int]] = []
        self._num_leaking = 0

    def add(self, row: Row) -> None:
        grams = ngrams(row.text)
        self._num_rows += 1
        self._added.append(grams)
        self._added_rows.append(np.full(len(grams), row.number))

    def close(self) -> None:
        """All its rows have been added. G = their n-grams, K = those that differ."""
        grams = np.concatenate([np.empty(0, np.uint64), *self._added])  # (G,)
        self._rows = np.concatenate([np.empty(0, np.int64), *self._added_rows])  # (G,)
        self._added, self._added_rows = [], []
        self._known, first, self._places = np.unique(grams, return_index=True, return_inverse=True)  # (K,), (K,), (G,)
        self._first_row = self._rows[first]  # (K,)
        self._seen = np.zeros(len(self._known), np.bool_)  # (K,)

    def look_for(self, number: int, grams: Hashes) -> None:
        """In the n-grams of a row of the dataset that the report is on."""
        if not len(self._known) or not len(grams):
            return
        places = np.searchsorted(self._known, grams)
        places[places == len(self._known)] = 0
        shared = places[self._known[places] == grams]
        if len(shared):
            self._seen[shared] = True
            self._num_leaking += 1
            if len(self._pairs) < FIRST:
                self._pairs.append({"row": number, "held_out_row": int(self._first_row[shared[0]])})

    def result(self) -> dict[str, Any]:
        found = np.unique(self._rows[self._seen[self._places]])
        return {
            "dataset": self._name,
            "rows": self._num_leaking,
            "held_out_rows": len(found),
            "held_out_share": len(found) / max(1, self._num_rows),
            "first": self._pairs,
        }


def ngrams(text: str) -> Hashes:
    """A hash of each run of NGRAM words, each once; of a shorter text of all of it."""
    words = _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())
    if not words:
        return np.empty(0, np.uint64)
    hashes = hash_words(words)
    return np.unique(mixed(np.lib.stride_tricks.sliding_window_view(hashes, min(NGRAM, len(hashes)))))
