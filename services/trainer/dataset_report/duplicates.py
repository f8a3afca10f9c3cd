"""Rows that come more than once, exactly or nearly: the latter by the SimHash that cleaning compares documents by."""

from array import array
from typing import Any

import numpy as np

from services.trainer.cleaning.hashes import hash64
from services.trainer.cleaning.simhash import MAX_DISTANCE, simhash
from services.trainer.dataset_report.rows import Row

FIRST = 5  # pairs that are named
MAX_COMPARED = 100_000  # rows: each is compared with all before it that are like no other


class Duplicates:
    def __init__(self) -> None:
        self._hashes = array("Q")
        self._numbers = array("Q")
        self._seen: set[int] = set()  # while near duplicates are looked for
        self._leaders: dict[str, _Leaders] = {}
        self._num_compared = 0
        self._near: list[dict[str, int]] = []
        self._num_near = 0

    def add(self, row: Row) -> None:
        found = hash64("\0".join(text for field in row.texts for text in field))
        self._hashes.append(found)
        self._numbers.append(row.number)
        if self._num_compared < MAX_COMPARED and found not in self._seen:
            self._seen.add(found)
            self._compare(row)

    def _compare(self, row: Row) -> None:
        """With the rows of the same language, as it is declared."""
        self._num_compared += 1
        bits = simhash(row.text, row.language)
        if bits is None:
            return
        like = self._leaders.setdefault(row.language, _Leaders()).find_or_add(bits, row.number)
        if like is not None:
            self._num_near += 1
            if len(self._near) < FIRST:
                self._near.append({"row": row.number, "like_row": like})

    def result(self) -> dict[str, Any]:
        hashes = np.frombuffer(self._hashes, np.uint64) if self._hashes else np.empty(0, np.uint64)
        _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        places = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
        pairs = [
            {"row": self._numbers[int(place)], "like_row": self._numbers[int(first[inverse[place]])]}
            for place in places[:FIRST]
        ]
        near = {"rows": self._num_near, "compared_rows": self._num_compared, "first": self._near}
        return {"exact": {"rows": len(places), "first": pairs}, "near": near}


class _Leaders:
    """SimHashes of which no two are near each other."""

    def __init__(self) -> None:
        self._bits = np.zeros(16, np.uint64)
        self._numbers = np.zeros(16, np.int64)
        self._size = 0

    def find_or_add(self, bits: int, number: int) -> int | None:
        """The number of the first row that this one is near to; None: there is none, and it is one itself."""
        distances = np.bitwise_count(self._bits[: self._size] ^ np.uint64(bits))
        near = np.flatnonzero(distances <= MAX_DISTANCE)
        if len(near):
            return int(self._numbers[near[0]])
        if self._size == len(self._bits):
            self._bits = np.concatenate((self._bits, np.zeros_like(self._bits)))
            self._numbers = np.concatenate((self._numbers, np.zeros_like(self._numbers)))
        self._bits[self._size], self._numbers[self._size] = bits, number
        self._size += 1
        return None
