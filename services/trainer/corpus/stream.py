"""The documents of shards as windows: shuffled, joined, cut; a pure function of a key and of the window's number.

S = tokens of a window's inputs, R = runs. An epoch joins all runs in an order of its own and cuts every S tokens; a
window has one token more, the next one's first. The windows come in a shuffled order too. So in each epoch every token
is a target once but its first and at most S - 1 at its end, as with Megatron's GPTDataset. Unlike there nothing depends
on how long one trains, and memory is bounded: of more documents than MAX_RUNS, neighbours stay together in runs.
"""

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from services.trainer.corpus.indexed import bin_path, damaged, read_header, read_lengths
from services.trainer.corpus.permutation import permuted
from services.trainer.failure import JobFailure

MAX_RUNS = 1 << 20  # up to 56 MB of places; a run is one document as long as there are no more
_OPEN_FILES = 64
Split = tuple[float, float]  # which documents, from 0 to 1


class TokenStream:
    """Windows of some shards, in the order of `key`, without end."""

    def __init__(
        self,
        shards: Sequence[Path],
        sequence_length: int,
        key: str,
        *,
        split: Split = (0.0, 1.0),
        max_runs: int = MAX_RUNS,
    ) -> None:
        """Raises JobFailure where a shard is damaged, and where the split holds no window."""
        self._length = sequence_length
        self._key = key
        self._shards = list(shards)
        headers = [read_header(shard) for shard in shards]
        self._dtypes = [header.dtype for header in headers]
        num_documents = sum(header.num_documents for header in headers)
        first, last = (round(part * num_documents) for part in split)
        documents_per_run = max(1, -(-(last - first) // max_runs))
        runs, before = [], 0  # of documents
        for shard, prefix in enumerate(shards):  # one mapped at a time: there may be thousands
            lengths = read_lengths(prefix)
            runs.append(_runs(lengths, shard, first - before, last - before, documents_per_run))
            before += len(lengths)
        joined = np.concatenate([np.empty((0, 3), np.int64), *runs])
        self._run_shards, self._run_starts, self._run_lengths = joined[joined[:, 2] > 0].T.copy()
        self.num_tokens = int(self._run_lengths.sum())
        self.num_windows = max(0, self.num_tokens - 1) // sequence_length  # of an epoch
        if not self.num_windows:
            what = f"{self.num_tokens} tokens, fewer than a window of sequence_length={sequence_length} and one"
            remedy = "add text, or lower sequence_length"
            raise JobFailure("BAD_DATA", f"{', '.join(map(str, shards))}: documents with {what}; {remedy}", "datasets")
        self._epoch = lru_cache(maxsize=2)(self._shuffled)
        self._file = lru_cache(maxsize=_OPEN_FILES)(self._open)

    def window(self, number: int) -> NDArray[np.int64]:
        """Window `number`, any from 0 on: (S + 1,) ids. Raises JobFailure where the shard has changed since."""
        epoch, rest = divmod(number, self.num_windows)
        at = int(permuted(np.array([rest]), self.num_windows, self._seed(epoch, "windows"))[0])
        return self._tokens(epoch, at * self._length, self._length + 1)

    def _tokens(self, epoch: int, start: int, count: int) -> NDArray[np.int64]:
        """Tokens start .. start + count - 1 of an epoch."""
        order, ends = self._epoch(epoch)
        position = int(np.searchsorted(ends, start, side="right"))
        pieces = []
        while count:
            run = order[position]
            skipped = start - int(ends[position] - self._run_lengths[run])
            taken = min(count, int(self._run_lengths[run]) - skipped)
            pieces.append(self._read(int(self._run_shards[run]), int(self._run_starts[run]) + skipped, taken))
            start, count, position = start + taken, count - taken, position + 1
        return np.concatenate(pieces)

    def _shuffled(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The runs in an epoch's order, and where in the epoch each ends."""
        size = len(self._run_lengths)
        order = permuted(np.arange(size), size, self._seed(epoch, "documents"))
        return order, np.cumsum(self._run_lengths[order])

    def _seed(self, epoch: int, purpose: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self._key}/{epoch}/{purpose}".encode()).digest()[:8], "little")

    def _read(self, shard: int, start: int, count: int) -> NDArray[np.int64]:
        # Not mapped: a file that was cut short meanwhile would end the process.
        dtype = self._dtypes[shard]
        data = os.pread(self._file(shard).fileno(), count * dtype.itemsize, start * dtype.itemsize)
        if len(data) != count * dtype.itemsize:
            raise damaged(bin_path(self._shards[shard]), "is shorter than when training began")
        return np.frombuffer(data, dtype).astype(np.int64)

    def _open(self, shard: int) -> BinaryIO:
        return bin_path(self._shards[shard]).open("rb", buffering=0)


def _runs(lengths: NDArray[Any], shard: int, first: int, last: int, per_run: int) -> NDArray[np.int64]:
    """A shard's documents from first to last - 1, those that it has, by `per_run`: (R, 3) shard, start, length."""
    first, last = max(0, first), min(max(0, last), len(lengths))
    if first >= last:
        return np.empty((0, 3), np.int64)
    start = int(lengths[:first].sum(dtype=np.int64))
    sizes = np.add.reduceat(lengths[first:last], np.arange(0, last - first, per_run), dtype=np.int64)
    starts = start + np.cumsum(sizes) - sizes
    return np.stack([np.full(len(sizes), shard), starts, sizes], axis=1)
