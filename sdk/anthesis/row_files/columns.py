"""Which columns of a table become which fields of a dataset's rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anthesis.rows import FORMATS

Row = dict[str, Any]
Choose = Callable[[Sequence[str]], dict[str, str]]
"""Header -> the columns that are taken, with their fields. Raises ValueError."""


@dataclass(frozen=True, slots=True)
class BadRow:
    reason: str


def choose_columns(
    file_name: str, dataset_format: str, columns: Mapping[str, str], header: Sequence[str]
) -> dict[str, str]:
    """Column -> field. Of TEXT and MULTITASK the format's own fields alone, of FIELDS all columns.

    columns: field -> column, where they are called otherwise. Raises ValueError naming the column.
    """
    _check_header(file_name, header)
    for field, column in columns.items():
        if column not in header:
            raise ValueError(f"{file_name} has no column {column!r} for {field!r}; {_has(header)}")
    if dataset_format == "FIELDS":
        return _all_columns(file_name, header, columns)
    needed, optional = FORMATS[dataset_format]
    known = (*needed, *optional, *(["messages"] if dataset_format == "MULTITASK" else []))
    if unknown := next((field for field in columns if field not in known), None):
        raise ValueError(f"{unknown!r} is no field of {dataset_format} rows; they have {', '.join(known)}")
    fields = {columns.get(field, field): field for field in known}
    chosen = {column: fields[column] for column in header if column in fields}
    missing = [field for field in needed if field not in chosen.values()]
    if missing and "messages" not in chosen.values():
        remedy = f"say which one it is, {missing[0]}=COLUMN"
        what = f"{file_name} has no column {missing[0]!r}, which {dataset_format} rows need; {_has(header)}"
        raise ValueError(f"{what}: {remedy}")
    return chosen


def _all_columns(file_name: str, header: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    renamed = {column: field for field, column in columns.items()}
    chosen = {column: renamed.get(column, column) for column in header}
    if len(set(chosen.values())) < len(chosen):
        twice = next(field for field in columns if list(chosen.values()).count(field) > 1)
        raise ValueError(f"{file_name} would have two fields {twice!r}; call one of the columns otherwise")
    return chosen


def _check_header(file_name: str, header: Sequence[str]) -> None:
    for place, name in enumerate(header, 1):
        if not name:
            raise ValueError(f"{file_name} has no name for column {place}; give it one")
        if name in header[: place - 1]:
            raise ValueError(f"{file_name} has two columns {name!r}; call one of them otherwise")


def _has(header: Sequence[str]) -> str:
    return f"it has {', '.join(map(repr, header))[:500]}"
