"""Reads the texts of JSONL artifacts, row by row."""

import json
from collections.abc import Iterable, Iterator

from anthesis.rows import COMPLETION

from services.common.artifacts import ArtifactStore
from services.common.errors import InvalidArgument


class Corpus:
    """The texts of datasets, as one pass: iterate once, then read what was counted."""

    def __init__(self, store: ArtifactStore, digests: Iterable[str]) -> None:
        self._store = store
        self._digests = tuple(digests)
        self.num_texts = 0
        self.num_bytes = 0

    def __iter__(self) -> Iterator[str]:
        """Yield each row's texts. Raises InvalidArgument with the dataset, the row's number (from 1) and the reason."""
        for digest in self._digests:
            for number, line in enumerate(_lines(self._store.read(digest)), start=1):
                for text in _texts(line, f"dataset {digest} row {number}"):
                    self.num_texts += 1
                    self.num_bytes += len(text.encode())
                    yield text


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _texts(line: bytes, where: str) -> tuple[str, ...]:
    try:
        row = json.loads(line.decode())  # decoded here: given bytes, json guesses the encoding
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise InvalidArgument(f"{where} is {type(row).__name__}, not an object with 'text' or 'inputs' and 'targets'")
    names = ("text",) if "text" in row else COMPLETION if "prompt" in row else ("inputs", "targets")
    for name in names:
        if not isinstance(row.get(name), str):
            raise InvalidArgument(f"{where}: {name!r} is {row.get(name)!r:.80}, not a string")
        if not _is_unicode(row[name]):
            raise InvalidArgument(f"{where}: {name!r} holds half a surrogate pair, which is no character")
    return tuple(row[name] for name in names)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
