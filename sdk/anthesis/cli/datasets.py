"""`anthesis datasets`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli import dataset_clean, dataset_report
from anthesis.cli.output import Json, enum_name, print_json, print_table, show_bytes, show_time, transfer
from anthesis.datasets import pinned
from anthesis.v1.registry_pb2 import Dataset, DatasetFormat, PreviewRow

COLUMNS = ("NAME", "VERSION", "FORMAT", "ROWS", "SIZE", "LANGUAGES")
group = typer.Typer(help="Training data: rows by name.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A dataset, which means its newest version, or NAME@VERSION.")]


class Format(StrEnum):
    TEXT = "text"
    MULTITASK = "multitask"
    FIELDS = "fields"
    BLEND = "blend"
    MIXTURE = "mixture"


def register(app: typer.Typer) -> None:
    dataset_report.register(group)
    dataset_clean.register(group)
    app.add_typer(group, name="datasets")


@group.command()
def upload(
    name: Annotated[str, typer.Argument(help="What jobs call it; one that is there gets a new version.")],
    file: Annotated[
        Path,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help="Rows: .jsonl or .csv, also .gz or .zst, or .parquet; of a blend or a mixture YAML.",
        ),
    ],
    format: Annotated[
        Format,
        typer.Option(
            help='text: rows {"text": …}; multitask: {"inputs": …, "targets": …} or {"messages": […]}; fields: any '
            "rows, for a mixture's templates; mixture: datasets, with templates; blend: corpora on disk."
        ),
    ] = Format.TEXT,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=COLUMN", help="Of CSV and Parquet: the column a field is in. May be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Upload a dataset; every bad row is reported."""
    kind = DatasetFormat.Value(f"DATASET_FORMAT_{format.name}")
    columns = dict(map(_column, column or []))
    with Client() as client, transfer(file.name, file.stat().st_size) as progress:
        _print([client.datasets.upload(name, file, kind, columns=columns, progress=progress)], as_json)


@group.command("list")
def list_datasets(as_json: Json = False) -> None:
    """All datasets, each in its newest version."""
    with Client() as client:
        datasets = client.datasets.list()
    if as_json:
        print_json(datasets)
    else:
        print_table(COLUMNS, map(_row, datasets))


@group.command()
def versions(name: Annotated[str, typer.Argument(help="A dataset.")], as_json: Json = False) -> None:
    """The versions of a dataset, newest first."""
    with Client() as client:
        datasets = client.datasets.versions(name)
    if as_json:
        print_json(datasets)
    else:
        columns = (*COLUMNS, "CREATED", "BY", "DIGEST")
        rows = ((*_row(row), show_time(row.create_time), row.created_by or "-", row.digest) for row in datasets)
        print_table(columns, rows)


@group.command()
def show(name: Name, as_json: Json = False) -> None:
    """One dataset."""
    with Client() as client:
        _print([client.datasets.get(name)], as_json)


@group.command()
def preview(
    name: Name,
    rows: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 10,
    seed: Annotated[int | None, typer.Option(min=0, help="Draw them at random, the same for the same seed.")] = None,
    as_json: Json = False,
) -> None:
    """The first rows, or a random sample; long fields are cut."""
    with Client() as client:
        found = client.datasets.preview(name, num_rows=rows, seed=seed)
    if as_json:
        print_json(found)
    else:
        print(f"{pinned(found.dataset)}: {len(found.rows)} of {found.dataset.num_rows} rows")
        for row in found.rows:
            print(f"\nrow {row.number}\n" + "\n".join(_fields(row)))


def _fields(row: PreviewRow) -> list[str]:
    """ "text: Il était une fois… (12,034 characters)"; control characters as escapes."""
    lines = []
    for field in row.fields:
        cut = f"… ({field.num_characters:,} characters)" if field.num_characters > len(field.text) else ""
        lines.append(f"  {_shown(field.name)}: {_shown(field.text)}{cut}")
    return lines


def _shown(text: str) -> str:
    """On one line, and without what a terminal would obey."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _column(text: str) -> tuple[str, str]:
    field, separator, column = text.partition("=")
    if not separator or not field or not column:
        raise ValueError(f"--column {text!r} is not FIELD=COLUMN; write for example text=body")
    return field, column


def _print(datasets: list[Dataset], as_json: bool) -> None:
    if as_json:
        print_json(datasets[0])
    else:
        print_table((*COLUMNS, "DIGEST"), [(*_row(dataset), dataset.digest) for dataset in datasets])


def _row(dataset: Dataset) -> tuple[object, ...]:
    languages = ",".join(dataset.languages) or "-"
    form = enum_name(DatasetFormat, dataset.format).lower()
    return dataset.name, dataset.version, form, dataset.num_rows, show_bytes(dataset.size_bytes), languages
