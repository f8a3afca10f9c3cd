"""Prints a Parquet file's columns, or its rows, as JSON lines: `python -m … FILE MAX_MEMORY_BYTES COLUMNS`.

A few rows at a time. Exit code 1 with a line on stderr where it cannot, another one where the limit stopped it.
"""

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow
import pyarrow.parquet

ROWS_PER_READ = 32
BUFFER_BYTES = 1 << 20  # of a column that are read at a time
TOO_LITTLE_MEMORY = 3  # exit code


def limit_memory(num_bytes: int) -> None:
    """Where the system has such a limit. Not the address space: libraries and files that are mapped cost nothing."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))


def columns(file: pyarrow.parquet.ParquetFile) -> Iterator[dict[str, Any]]:
    yield {"columns": list(file.schema_arrow.names)}


def rows(file: pyarrow.parquet.ParquetFile, chosen: dict[str, str]) -> Iterator[dict[str, Any]]:
    """{"row": …}, or {"bad": why}. chosen: column -> field."""
    number = 0
    for batch in file.iter_batches(ROWS_PER_READ, columns=list(chosen), use_threads=False):
        values = {}
        for column in chosen:
            try:
                values[column] = batch.column(column).to_pylist()
            except ValueError as error:
                what = f"rows {number + 1} to {number + batch.num_rows}, column {column!r}"
                raise ValueError(f"{what} cannot be read: {error}") from error
        for place in range(batch.num_rows):
            number += 1
            yield _row({column: found[place] for column, found in values.items()}, chosen)


def _row(values: dict[str, Any], chosen: dict[str, str]) -> dict[str, Any]:
    row = {}
    for column, value in values.items():
        try:
            plain = _plain(value)
        except ValueError as error:
            return {"bad": f"column {column!r} {error}"}
        if plain is not None:
            row[chosen[column]] = plain
    return {"row": row}


def _plain(value: Any) -> Any:
    """A value as JSON has it. Raises ValueError for one that it has not."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise ValueError(f"has {len(value)} bytes that are no UTF-8") from None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    raise ValueError(f"has a {type(value).__name__}, which JSON has not")


def main(path: str, max_memory_bytes: str, chosen: str) -> None:
    limit_memory(int(max_memory_bytes))
    fields: dict[str, str] | None = json.loads(chosen)
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            for line in columns(file) if fields is None else rows(file, fields):
                print(json.dumps(line))
    except (MemoryError, pyarrow.ArrowMemoryError):
        sys.exit(TOO_LITTLE_MEMORY)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        print(f"is no Parquet that can be read: {' '.join(str(error).split())[:500]}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
