"""The rows of a dataset as a report looks at them: their texts, field by field."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from anthesis.rows import FORMATS, check_row, split_lines

from services.common.artifacts import ArtifactStore
from services.trainer.config import DatasetSpec

# What is learnt from, in the order in which it is read; of FIELDS, which templates put together, every string.
_TEXTS = ("context", "text", "inputs", "prompt", "targets", "completion")


@dataclass(frozen=True, slots=True)
class Row:
    number: int  # from 1, as errors count them
    values: dict[str, Any]
    texts: tuple[tuple[str, str], ...]  # (field, text)

    @property
    def language(self) -> str:
        """As the row says; "" where it does not."""
        return str(self.values.get("language") or "")

    @property
    def text(self) -> str:
        return "\n".join(text for _, text in self.texts)


@dataclass(frozen=True, slots=True)
class NoRow:
    """A line that is no row of its format."""

    number: int
    reason: str


def read_rows(store: ArtifactStore, dataset: DatasetSpec) -> Iterator[Row | NoRow]:
    """As a stream. Raises NotFound, DataLoss."""
    needed, optional = FORMATS[dataset.format.upper()]
    for number, line in enumerate(split_lines(store.read(dataset.digest)), 1):
        reason, _ = check_row(line, needed, optional)
        yield NoRow(number, reason) if reason or line is None else _row(number, json.loads(line), dataset)


def _row(number: int, values: dict[str, Any], dataset: DatasetSpec) -> Row:
    if dataset.format == "multitask" and "messages" in values:
        turns = enumerate(values["messages"], 1)
        return Row(number, values, tuple((f"message {place}", turn["content"]) for place, turn in turns))
    names = [name for name in values if name != "language"] if dataset.format == "fields" else _TEXTS
    return Row(number, values, tuple((name, values[name]) for name in names if isinstance(values.get(name), str)))
