"""Megatron's indexed datasets: token ids in a `.bin`, and in a `.idx` where each document lies.

D = documents (Megatron's "sequences"), E = entries of the document boundaries. Numbers are little-endian. The index:
9 bytes of magic, uint64 version, uint8 code of the ids' dtype, uint64 D, uint64 E; then int32 (D,) lengths in tokens,
int64 (D,) places in the `.bin` in bytes, int64 (E,) boundaries, which are 0 .. D where each sequence is a document.

Source: NVIDIA/Megatron-LM, megatron/core/datasets/indexed_dataset.py. BigScience's fork, which wrote BLOOM's data,
has the same format ("mmap"). Our own code because megatron-core takes an index at its word: one that does not belong to
its `.bin` gives other tokens than were written, or an error that names no file, in the middle of a run.
"""

import contextlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.trainer.failure import JobFailure
from services.trainer.files import sync_folder

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}  # 6 and 7 are floats
_CODES = {name: code for code, name in _DTYPES.items()}
_UINT16_VOCABULARY = 65_500  # tokens; Megatron writes int32 from there on
_BLOCK = 1 << 20  # documents checked at a time


def dtype_for(vocab_size: int) -> "np.dtype[Any]":
    """What Megatron stores ids of a vocabulary as."""
    return np.dtype("uint16" if vocab_size < _UINT16_VOCABULARY else "int32")


def bin_path(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.bin")


def idx_path(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.idx")


@dataclass(frozen=True, slots=True)
class Header:
    """What a `.idx` begins with; its length agrees with the counts."""

    dtype: "np.dtype[Any]"
    num_documents: int
    bin_bytes: int  # of the `.bin`


def read_header(prefix: Path) -> Header:
    """Of the shard `prefix`. Raises JobFailure (CORRUPT_SHARD, or BAD_DATA where it is not there) with a remedy."""
    path = idx_path(prefix)
    try:
        num_bytes, bin_bytes = path.stat().st_size, bin_path(prefix).stat().st_size
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
    except FileNotFoundError as error:
        remedy = "a shard is a .bin and a .idx; give their common path without the ending"
        raise JobFailure("BAD_DATA", f"{error.filename} is not there; {remedy}", "datasets") from error
    except OSError as error:
        what = f"{path} cannot be read: {error.strerror}; let this user read it"
        raise JobFailure("BAD_DATA", what, "datasets") from error
    if len(header) < _HEADER.size or not header.startswith(MAGIC):
        raise damaged(path, f"does not begin with {MAGIC!r} and counts, so it is no index of Megatron's mmap format")
    _, version, code, num_documents, num_boundaries = _HEADER.unpack(header)
    if version != VERSION:
        raise damaged(path, f"has version {version}, not {VERSION}")
    if code not in _DTYPES:
        raise damaged(path, f"has dtype code {code}; ids have one of {sorted(_DTYPES)}")
    expected = _HEADER.size + 12 * num_documents + 8 * num_boundaries
    if num_bytes != expected:
        counted = f"{num_documents} documents and {num_boundaries} boundaries take {expected} bytes"
        raise damaged(path, f"is {num_bytes} bytes long, but {counted}")
    return Header(np.dtype(_DTYPES[code]).newbyteorder("<"), num_documents, bin_bytes)


def read_lengths(prefix: Path) -> NDArray[np.int32]:
    """The documents' lengths in tokens, (D,), memory-mapped; document i lies behind those before it, the last ends
    the `.bin`. Raises JobFailure (CORRUPT_SHARD, BAD_DATA) where that is not so."""
    header, path = read_header(prefix), idx_path(prefix)
    entries = np.memmap(path, np.uint8, "r")[_HEADER.size :]
    size = header.num_documents
    lengths, places, boundaries = entries[: 4 * size], entries[4 * size : 12 * size], entries[12 * size :]
    _check_places(path, lengths.view("<i4"), places.view("<i8"), header)
    _check_boundaries(path, boundaries.view("<i8"), size)
    return lengths.view("<i4")


def _check_places(path: Path, lengths: NDArray[np.int32], places: NDArray[np.int64], header: Header) -> None:
    end = 0  # of the documents seen so far, in bytes
    for start in range(0, len(lengths), _BLOCK):
        block = lengths[start : start + _BLOCK].astype(np.int64)
        if block.min() < 0:
            where = start + int(np.argmin(block))
            raise damaged(path, f"says that document {where} has {block.min()} tokens")
        ends = end + np.cumsum(block * header.dtype.itemsize)
        begins = np.concatenate(([end], ends[:-1]))
        found = places[start : start + _BLOCK]
        if not np.array_equal(found, begins):
            where = int(np.argmax(found != begins))
            told = f"begins at byte {found[where]}, but the one before it ends at byte {begins[where]}"
            raise damaged(path, f"says that document {start + where} {told}")
        end = int(ends[-1])
        if end > header.bin_bytes:
            break
    if end != header.bin_bytes:
        raise damaged(path, f"describes {end} bytes or more of tokens, but its .bin has {header.bin_bytes}")


def _check_boundaries(path: Path, boundaries: NDArray[np.int64], num_documents: int) -> None:
    if not len(boundaries) or boundaries[0] != 0 or boundaries[-1] != num_documents:
        raise damaged(path, f"has document boundaries that do not go from 0 to {num_documents}")
    for start in range(0, len(boundaries) - 1, _BLOCK):
        block = boundaries[start : start + _BLOCK + 1]
        if (block[1:] < block[:-1]).any():
            raise damaged(path, "has document boundaries that go backwards")


def damaged(path: Path, what: str) -> JobFailure:
    remedy = "bring both files of the shard from a good copy, or make them again"
    return JobFailure("CORRUPT_SHARD", f"{path} {what}; {remedy}", "datasets")


class ShardWriter:
    """Writes the shard `prefix`, which appears whole when it is closed; until then there are `.part` files alone."""

    def __init__(self, prefix: Path, dtype: "np.dtype[Any]") -> None:
        self._prefix = prefix
        self._dtype = dtype.newbyteorder("<")
        self._lengths: list[NDArray[np.int32]] = []
        idx_path(prefix).unlink(missing_ok=True)  # an older index must not describe new tokens
        self._tokens = _part(bin_path(prefix)).open("wb")

    def add(self, tokens: NDArray[Any], lengths: NDArray[np.int32]) -> None:
        """Append documents. tokens: their ids, joined; lengths: the tokens of each."""
        self._tokens.write(np.ascontiguousarray(tokens, self._dtype).data)
        self._lengths.append(lengths)

    def close(self) -> None:
        """Make the shard durable, then visible: the index last, without which there is no shard."""
        lengths = np.concatenate([np.empty(0, np.int32), *self._lengths])
        places = np.zeros(len(lengths), "<i8")
        np.cumsum(lengths[:-1] * np.int64(self._dtype.itemsize), out=places[1:])
        with _part(idx_path(self._prefix)).open("wb") as file:
            code = _CODES[self._dtype.name]
            file.write(_HEADER.pack(MAGIC, VERSION, code, len(lengths), len(lengths) + 1))
            file.write(lengths.astype("<i4").data)
            file.write(places.data)
            file.write(np.arange(len(lengths) + 1, dtype="<i8").data)
            _sync(file)
        _sync(self._tokens)
        self._tokens.close()
        for path in (bin_path(self._prefix), idx_path(self._prefix)):
            os.replace(_part(path), path)
        sync_folder(self._prefix.parent)

    def abandon(self) -> None:
        """Leave nothing of an unfinished shard."""
        with contextlib.suppress(OSError):  # a full disk, which its last bytes meet again
            self._tokens.close()
        for path in (bin_path(self._prefix), idx_path(self._prefix)):
            _part(path).unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
