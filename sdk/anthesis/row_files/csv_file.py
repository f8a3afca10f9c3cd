"""Rows of a CSV file as RFC 4180 has it: commas, double quotes, a header, in UTF-8. No row is held without bound."""

import csv
from collections.abc import Iterable, Iterator

from anthesis.row_files.columns import BadRow, Choose, Row
from anthesis.rows import MAX_ROW_BYTES, split_lines

_BOM = b"\xef\xbb\xbf"
_OPTIONAL = ("context", "language")  # fields that a row leaves out where its cell is empty


def read_csv(chunks: Iterable[bytes], choose: Choose) -> Iterator[Row | BadRow]:
    """A row for each record under the header; blank lines are none.

    chunks: bytes of the file, cut anywhere. Raises ValueError where it cannot be read on, with the row's number.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _Lines(chunks)
    records = csv.reader(lines, strict=True)
    number = 0
    try:
        header = next(records, None)
    except (csv.Error, _BadLine) as error:
        raise ValueError(f"the header cannot be read: {error}") from None
    if not header:
        raise ValueError("the file has no header; name the columns in its first line")
    chosen = [(header.index(column), field) for column, field in choose(header).items()]
    try:
        for cells in records:
            lines.size = 0
            number += bool(cells)
            if cells and len(cells) != len(header):
                yield BadRow(f"{len(cells)} cells under {len(header)} columns")
            elif cells:
                yield {field: cells[place] for place, field in chosen if cells[place] or field not in _OPTIONAL}
    except (csv.Error, _BadLine) as error:
        remedy = "double the quotes inside quotes (RFC 4180), save as UTF-8"
        raise ValueError(f"row {number + 1} cannot be read: {error}; {remedy}") from None


class _BadLine(Exception):
    pass


class _Lines:
    """Lines with their ends, as csv takes them."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._lines = split_lines(chunks)
        self._is_first = True
        self.size = 0  # bytes of the record that is being read

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.size += len(line or b"") + 1
        if line is None or self.size > MAX_ROW_BYTES:
            raise _BadLine(f"it is longer than {MAX_ROW_BYTES} bytes; a quote may be left open")
        if self._is_first:
            line, self._is_first = line.removeprefix(_BOM), False
        try:
            return line.decode() + "\n"
        except UnicodeDecodeError as error:
            raise _BadLine(f"it is not UTF-8 ({error.reason})") from None
