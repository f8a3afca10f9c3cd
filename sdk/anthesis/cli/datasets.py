"""`anthesis datasets`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli.output import Json, enum_name, print_json, print_table, show_bytes, transfer
from anthesis.v1.registry_pb2 import Dataset, DatasetFormat

COLUMNS = ("NAME", "FORMAT", "ROWS", "SIZE", "LANGUAGES")
group = typer.Typer(help="Training data: JSONL files by name.", no_args_is_help=True)


class Format(StrEnum):
    TEXT = "text"
    MULTITASK = "multitask"
    FIELDS = "fields"
    BLEND = "blend"
    MIXTURE = "mixture"


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="datasets")


@group.command()
def upload(
    name: Annotated[str, typer.Argument(help="What jobs call it.")],
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSONL; of a blend or a mixture YAML.")],
    format: Annotated[
        Format,
        typer.Option(
            help='text: rows {"text": …}; multitask: {"inputs": …, "targets": …} or {"messages": […]}; fields: any '
            "rows, for a mixture's templates; mixture: datasets, with templates; blend: corpora on disk."
        ),
    ] = Format.TEXT,
    as_json: Json = False,
) -> None:
    """Upload a dataset; every bad row is reported."""
    kind = DatasetFormat.Value(f"DATASET_FORMAT_{format.name}")
    with Client() as client, transfer(file.name, file.stat().st_size) as progress:
        _print([client.datasets.upload(name, file, kind, progress=progress)], as_json)


@group.command("list")
def list_datasets(as_json: Json = False) -> None:
    """All datasets."""
    with Client() as client:
        datasets = client.datasets.list()
    if as_json:
        print_json(datasets)
    else:
        print_table(COLUMNS, map(_row, datasets))


@group.command()
def show(name: str, as_json: Json = False) -> None:
    """One dataset."""
    with Client() as client:
        _print([client.datasets.get(name)], as_json)


def _print(datasets: list[Dataset], as_json: bool) -> None:
    if as_json:
        print_json(datasets[0])
    else:
        print_table((*COLUMNS, "DIGEST"), [(*_row(dataset), dataset.digest) for dataset in datasets])


def _row(dataset: Dataset) -> tuple[object, ...]:
    languages = ",".join(dataset.languages) or "-"
    form = enum_name(DatasetFormat, dataset.format).lower()
    return dataset.name, form, dataset.num_rows, show_bytes(dataset.size_bytes), languages
