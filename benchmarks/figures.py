"""Medians over rounds, and tables of them."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One quantity, measured several times."""

    median: float
    least: float
    greatest: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        return cls(median=statistics.median(values), least=min(values), greatest=max(values), count=len(values))

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.least)}–{short(self.greatest)})"


Figures = dict[tuple[str, str], Figure]  # (contestant, quantity), for example ("vllm bf16", "decode 8")


def short(value: float) -> str:
    """Three digits or more: 9.876 -> 9.88, 123.4 -> 123."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def summarize(rows: Iterable[Row]) -> Figures:
    """Quantities: `prefill` and `decode <batch>` in tokens/s, and every number of the other kinds by its own name.

    The machine's are under the contestant "".
    """
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        contestant = row.get("contestant", "")
        for name, value in _quantities(row):
            values[contestant, name].append(value)
    return {key: Figure.of(samples) for key, samples in values.items()}


def _quantities(row: Row) -> Iterable[tuple[str, float]]:
    match row["kind"]:
        case "prefill":
            yield "prefill", row["tokens_per_s"]
        case "decode":
            yield f"decode {row['batch']}", row["tokens_per_s"]
        case _:
            for name, value in row.items():
                if name not in ("kind", "contestant", "round") and isinstance(value, int | float):
                    yield name, value


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown, in columns of equal width."""
    cells = [list(header), *map(list, lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    )


def speed_table(figures: Figures, batches: Sequence[int]) -> str:
    """Contestants in the order of their first row; medians with least and greatest."""
    columns = {
        "prefill tok/s": "prefill",
        **{f"decode tok/s, {batch}": f"decode {batch}" for batch in batches},
        "first token s": "first_token_s",
        "resident MiB": "resident_bytes",
        "other CPU s": "foreign_cpu_s",
    }
    names = dict.fromkeys(contestant for contestant, _ in figures if contestant)
    lines = [
        [name, *(_cell(figures.get((name, quantity)), quantity) for quantity in columns.values())] for name in names
    ]
    return table(["contestant", *columns], lines)


def _cell(figure: Figure | None, quantity: str) -> str:
    if figure is None:
        return "–"
    if quantity == "resident_bytes":
        return short(figure.median / (1 << 20))
    return str(figure)
