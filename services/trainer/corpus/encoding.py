"""Pieces of text to token ids: what a worker process of the tokenizing command does. Each computes on one thread."""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.trainer.corpus.texts import BadRow, Piece, Reading, documents
from services.trainer.encoder import Encoder
from services.trainer.processes import die_with_parent

_BATCH_CHARACTERS = 1 << 18  # encoded at a time: what the library holds of them stays in the tens of MB


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """What a worker has to know."""

    tokenizer: Path
    reading: Reading
    dtype: "np.dtype[Any]"
    end: int | None  # the id that ends a document; None: nothing does
    skip_bad_rows: bool


@dataclass(kw_only=True, slots=True)
class Encoded:
    """The documents of some pieces."""

    tokens: NDArray[Any]  # the documents' ids, joined
    lengths: NDArray[np.int32]  # of each document
    num_rows: list[int]  # of each piece, as far as it was read
    bad_rows: list[list[BadRow]]  # of each piece
    num_empty: int  # rows without text
    text_bytes: int

    def counts(self) -> dict[str, int]:
        """What a shard's record adds up."""
        return {
            "num_documents": len(self.lengths),
            "num_tokens": len(self.tokens),
            "text_bytes": self.text_bytes,
            "num_empty": self.num_empty,
            "num_bad": sum(map(len, self.bad_rows)),
        }


class PieceEncoder:
    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._encoder = Encoder(encoding.tokenizer)

    def __call__(self, pieces: Sequence[Piece]) -> Encoded:
        """Encode pieces up to their end, or up to the first bad row where those are not skipped."""
        rows = _Rows(self._encoding.reading, self._encoding.skip_bad_rows)
        tokens, lengths = [], []
        for texts in _batched(rows.texts(pieces)):
            ids = self._encoder.encode(texts)
            if self._encoding.end is not None:
                for document in ids:
                    document.append(self._encoding.end)
            lengths.append(np.fromiter(map(len, ids), np.int32, len(ids)))
            tokens.append(np.fromiter(chain.from_iterable(ids), self._encoding.dtype, int(lengths[-1].sum())))
        return Encoded(
            tokens=np.concatenate([np.empty(0, self._encoding.dtype), *tokens]),
            lengths=np.concatenate([np.empty(0, np.int32), *lengths]),
            num_rows=rows.counts,
            bad_rows=rows.bad,
            num_empty=rows.num_empty,
            text_bytes=rows.text_bytes,
        )


@dataclass(slots=True)
class _Rows:
    """Reads the texts of pieces and keeps account of the rows that have none."""

    reading: Reading
    skip_bad: bool
    counts: list[int] = field(default_factory=list)
    bad: list[list[BadRow]] = field(default_factory=list)
    num_empty: int = 0
    text_bytes: int = 0

    def texts(self, pieces: Sequence[Piece]) -> Iterator[str]:
        for piece in pieces:
            self.counts.append(0)
            self.bad.append([])
            for row in documents(piece, self.reading):
                self.counts[-1] += 1
                if isinstance(row, str):
                    self.text_bytes += len(row) if row.isascii() else len(row.encode())
                    yield row
                elif row is None:
                    self.num_empty += 1
                else:
                    self.bad[-1].append(row)
                    if not self.skip_bad:
                        return


def _batched(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


_encode: PieceEncoder  # of this process, when it is a worker


def start_worker(parent: int, encoding: Encoding) -> None:
    """Make this process a worker: it ends with `parent`, which alone answers Ctrl-C."""
    global _encode
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encode = PieceEncoder(encoding)


def encode(pieces: Sequence[Piece]) -> Encoded:
    """What the pool calls in its processes."""
    return _encode(pieces)
