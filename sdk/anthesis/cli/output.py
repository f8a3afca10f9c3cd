"""What commands print: tables for people, tab-separated lines for pipes, JSON for programs."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC
from typing import Annotated, Any

import typer
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from anthesis import artifacts

MAX_COUNT = (1 << 32) - 1  # what a uint32 field of the contract carries

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

console = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


def print_json(value: Any) -> None:
    """One JSON document; messages as `plain` has them."""
    print(json.dumps(plain(value), ensure_ascii=False, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on a terminal; elsewhere tab-separated lines, which nothing truncates."""
    texts = [[str(cell) for cell in row] for row in rows]
    if not console.is_terminal:
        print("\n".join("\t".join(line) for line in [columns, *texts]))
        return
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for line in texts:
        table.add_row(*line)
    console.print(table, markup=False)


def plain(value: Any) -> Any:
    """JSON's types for a message: numbers stay numbers, times are ISO 8601, enums are names without their prefix."""
    if isinstance(value, Timestamp):
        return value.ToDatetime(UTC).isoformat() if value.seconds else None
    if isinstance(value, Message):
        fields: list[Any] = list(value.DESCRIPTOR.fields)
        shown = [field for field in fields if not field.has_presence or value.HasField(field.name)]
        return {field.name: _plain_field(field, getattr(value, field.name)) for field in shown}
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str | int | float | None):
        return value
    return [plain(item) for item in value]


def enum_name(enum: Any, number: int) -> str:
    """ "RUNNING" for JOB_STATE_RUNNING: the part that its enum's other names do not share."""
    names = list(enum.keys())
    prefix = names[0].removesuffix("UNSPECIFIED")
    return str(enum.Name(number)).removeprefix(prefix)


def _plain_field(field: Any, value: Any) -> Any:
    if field.enum_type is None:
        return plain(value)
    names = {item.number: item.name for item in field.enum_type.values}
    prefix = names[0].removesuffix("UNSPECIFIED")
    if isinstance(value, int):
        return names[value].removeprefix(prefix)
    return [names[item].removeprefix(prefix) for item in value]


def show_bytes(count: float) -> str:
    """ "1.2 GB"."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def show_count(count: float) -> str:
    """ "559.2M"; parameters, tokens."""
    for unit in ("", "K", "M", "B", "T"):
        if count < 1000 or unit == "T":
            break
        count /= 1000
    return f"{count:.0f}" if not unit else f"{count:.1f}{unit}"


def show_flops(per_second: float) -> str:
    """ "149.8 TFLOP/s"."""
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if per_second < 1000 or unit == "E":
            break
        per_second /= 1000
    return f"{per_second:.1f} {unit}FLOP/s"


def show_time(time: Timestamp) -> str:
    """Local time to the second; "-" when unset."""
    return time.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S") if time.seconds else "-"


@contextmanager
def transfer(description: str, total: int) -> Iterator[artifacts.Progress]:
    """A progress bar on stderr, in bytes; yields the callback that moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=stderr, disable=not stderr.is_terminal) as progress:
        task = progress.add_task(description, total=total)

        def move(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield move
