"""Files of rows as people have them (JSONL, CSV, Parquet, compressed), turned into the JSONL that a dataset is."""

import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

from anthesis.row_files.columns import BadRow, Choose, Row, choose_columns
from anthesis.row_files.csv_file import read_csv
from anthesis.row_files.limits import Allowed, Limits
from anthesis.row_files.parquet import read_parquet
from anthesis.row_files.unpack import PACKED, unpacked
from anthesis.rows import FORMATS, MAX_REPORTED, MAX_ROW_BYTES

_JSONL, _CSV, _PARQUET = (".jsonl", ".ndjson", ".json"), ".csv", ".parquet"
SUFFIXES = (*_JSONL, _CSV, _PARQUET, *(f"{kind}{packed}" for kind in (*_JSONL, _CSV) for packed in PACKED))


def suffix_of(name: str) -> str:
    """The ending that says how a file is read (".csv.gz"); "" where none does: it is taken as it is."""
    endings = [suffix for suffix in SUFFIXES if name.lower().endswith(suffix)]
    return max(endings, key=len, default="")


def as_jsonl(
    path: Path, dataset_format: str, columns: Mapping[str, str], folder: Path, limits: Limits | None = None
) -> Path:
    """The file's rows as JSONL: `path` itself, or a file written into `folder`. Blocking.

    columns: which column a field is in, where it is not called like the field. Raises ValueError naming row and
    column, or the limit that what is unpacked would pass.
    """
    suffix = suffix_of(path.name)
    kind, packed = suffix.removesuffix(".gz").removesuffix(".zst"), suffix.endswith(PACKED)
    is_table = kind in (_CSV, _PARQUET)
    if columns and not is_table:
        raise ValueError(f"{path.name} is no .csv or .parquet, so it has no columns; leave {', '.join(columns)} out")
    if dataset_format not in FORMATS or not (is_table or packed):
        return path
    allowed = (limits or Limits()).of(path)
    if is_table:
        lines = _encoded(_table_rows(path, kind, allowed, partial(choose_columns, path.name, dataset_format, columns)))
    else:
        lines = unpacked(path, allowed)
    target = folder / "rows.jsonl"
    with target.open("wb") as file, closing(lines):
        for line in lines:
            file.write(line)
            allowed.check(file.tell())
    return target


def _table_rows(path: Path, kind: str, allowed: Allowed, choose: Choose) -> Iterator[Row | BadRow]:
    return read_csv(unpacked(path, allowed), choose) if kind == _CSV else read_parquet(path, choose)


def _encoded(rows: Iterable[Row | BadRow]) -> Generator[bytes, None, None]:
    """A line for each row. Raises ValueError listing those that are none, at the end or after the first 1,000."""
    number = 0
    bad: list[str] = []
    for number, row in enumerate(rows, 1):
        line = row if isinstance(row, BadRow) else _line(row)
        if isinstance(line, BadRow):
            bad.append(f"row {number}: {line.reason}")
        else:
            yield line
        if len(bad) == MAX_REPORTED:
            break
    if bad:
        raise ValueError("\n".join([f"{len(bad)} of the first {number} rows cannot be read; correct them", *bad]))


def _line(row: Row) -> bytes | BadRow:
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    return line if len(line) <= MAX_ROW_BYTES else BadRow(f"longer than {MAX_ROW_BYTES} bytes")
