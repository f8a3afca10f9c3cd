"""The documents of text files, piece by piece: JSONL, Parquet, and plain text by file or by line.

A piece is what a worker reads at a time: lines that begin within a range of bytes, row groups, or whole files. Pieces
follow from the files' names and sizes alone, so that a run that is started again cuts where the first one did.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow
import pyarrow.parquet

from services.trainer.failure import JobFailure

PIECE_BYTES = 1 << 20  # of text files; a piece of Parquet is a row group
MAX_DOCUMENT_BYTES = 16 << 20  # encoding takes about 110 times a document in memory
_ROWS_PER_READ = 256  # of a row group

Plain = Literal["file", "line"]  # what a document is in plain text
_JSONL, _PARQUET, _PLAIN = (".jsonl", ".json", ".ndjson"), (".parquet",), (".txt", ".text")
_SUFFIXES = ", ".join((*_JSONL, *_PARQUET, *_PLAIN))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How documents are found in files."""

    key: str = "text"  # JSONL's and Parquet's field
    plain: Plain = "file"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """An input file, as it is when its pieces are cut."""

    path: Path
    num_bytes: int
    changed_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    path: Path
    start: int  # bytes, or row groups
    stop: int
    num_bytes: int  # for progress and sizes


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row without a document. `row` counts from 1, within its piece, then within its file."""

    path: Path
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, row {self.row}: {self.reason}"


def find_sources(inputs: Sequence[Path]) -> list[Source]:
    """The files that `inputs` name, folders searched through, in order. Raises JobFailure for what cannot be read."""
    found = []
    for path in inputs:
        files = sorted(file for file in path.rglob("*") if _is_text(file)) if path.is_dir() else [path]
        if not files:
            raise JobFailure("BAD_DATA", f"{path} holds no file that ends in {_SUFFIXES}; name another folder")
        found += [_source(file) for file in files]
    return found


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in (*_JSONL, *_PARQUET, *_PLAIN) and path.is_file()


def _source(path: Path) -> Source:
    if not path.is_file():
        raise JobFailure("BAD_DATA", f"{path} is no file or folder; check its name")
    if not _is_text(path):
        raise JobFailure("BAD_DATA", f"{path} does not end in {_SUFFIXES}; unpack or convert it first")
    state = path.stat()
    return Source(path=path, num_bytes=state.st_size, changed_ns=state.st_mtime_ns)


def cut(source: Source, reading: Reading) -> list[Piece]:
    """The pieces of a file, in order. Raises JobFailure for Parquet that is damaged or has no such column."""
    path, size = source.path, source.num_bytes
    if path.suffix.lower() in _PARQUET:
        return _cut_parquet(path, reading.key)
    if path.suffix.lower() in _PLAIN and reading.plain == "file":
        return [Piece(path=path, start=0, stop=size, num_bytes=size)]
    starts = range(0, size, PIECE_BYTES)
    return [
        Piece(path=path, start=start, stop=min(start + PIECE_BYTES, size), num_bytes=min(PIECE_BYTES, size - start))
        for start in starts
    ]


def _cut_parquet(path: Path, key: str) -> list[Piece]:
    try:
        metadata = pyarrow.parquet.read_metadata(path)
        columns = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    if key not in columns:
        raise JobFailure("BAD_DATA", f"{path} has no column {key!r}; choose --key among {', '.join(columns)}")
    sizes = [group.column(columns.index(key)).total_uncompressed_size for group in groups]
    return [Piece(path=path, start=i, stop=i + 1, num_bytes=max(0, size)) for i, size in enumerate(sizes)]


def documents(piece: Piece, reading: Reading) -> Iterator[str | BadRow | None]:
    """One item for each row of a piece: its text, None where it is blank, or what is wrong with it."""
    suffix = piece.path.suffix.lower()
    if suffix in _PARQUET:
        rows: Iterator[object] = _parquet_rows(piece, reading.key)
    elif suffix in _PLAIN:
        rows = (line.rstrip(b"\r\n") for line in _lines(piece)) if reading.plain == "line" else _whole(piece)
    else:
        rows = _lines(piece)
    for number, row in enumerate(rows, 1):
        try:
            yield _text(row, reading.key, is_json=suffix in _JSONL)
        except (ValueError, RecursionError) as error:
            yield BadRow(piece.path, number, str(error))


def _text(row: object, key: str, *, is_json: bool) -> str | None:
    """A row's text. Raises ValueError with what is wrong."""
    if not isinstance(row, (bytes, str)):
        raise ValueError(f"has no string {key!r}")
    if len(row) > MAX_DOCUMENT_BYTES:
        remedy = "cut it, or read plain text with --plain line"
        raise ValueError(f"is longer than the {MAX_DOCUMENT_BYTES:,} bytes of a document; {remedy}")
    if isinstance(row, bytes):
        row = _json_text(row, key) if is_json else row.decode()
    return row or None


def _json_text(line: bytes, key: str) -> str:
    if not line.strip():
        return ""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON: {error}") from None
    text = row.get(key) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise ValueError(f"has no string {key!r}")
    if not text.isascii():
        text.encode()  # a lone surrogate ("\ud800") is no text: UnicodeEncodeError, a ValueError
    return text


def _whole(piece: Piece) -> Iterator[bytes]:
    with piece.path.open("rb") as file:
        yield file.read(MAX_DOCUMENT_BYTES + 1).removeprefix(b"\xef\xbb\xbf")


def _lines(piece: Piece) -> Iterator[bytes]:
    """The lines that begin in a piece, each at most one byte over the limit."""
    with piece.path.open("rb") as file:
        if piece.start:
            file.seek(piece.start - 1)
            _skip_line(file)  # it began in an earlier piece
        while file.tell() < piece.stop and (line := file.readline(MAX_DOCUMENT_BYTES + 1)):
            if len(line) > MAX_DOCUMENT_BYTES and not line.endswith(b"\n"):
                _skip_line(file)
            yield line


def _skip_line(file: BinaryIO) -> None:
    while (part := file.readline(1 << 20)) and not part.endswith(b"\n"):
        pass


def _parquet_rows(piece: Piece, key: str) -> Iterator[object]:
    try:
        with pyarrow.parquet.ParquetFile(piece.path) as file:
            groups = list(range(piece.start, piece.stop))
            for batch in file.iter_batches(_ROWS_PER_READ, row_groups=groups, columns=[key], use_threads=False):
                yield from batch.column(0).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: strings that are no UTF-8
        raise _unreadable(piece.path, error) from error


def _unreadable(path: Path, error: Exception) -> JobFailure:
    return JobFailure("BAD_DATA", f"{path} is no readable Parquet: {error}; bring it from a good copy")
