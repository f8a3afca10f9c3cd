"""`anthesis files`."""

from pathlib import Path
from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli.output import Json, print_json, print_table, show_bytes, show_time, transfer
from anthesis.v1.file_pb2 import File

COLUMNS = ("ID", "FILENAME", "PURPOSE", "ROWS", "SIZE", "CREATED")
group = typer.Typer(help="Files of OpenAI's files API, your own.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="files")


@group.command()
def upload(
    file: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help='JSONL: {"messages": […]}, {"prompt": …, "completion": …}, {"text": …}.'
        ),
    ],
    as_json: Json = False,
) -> None:
    """Upload a file to fine-tune with; every bad row is reported."""
    with Client() as client, transfer(file.name, file.stat().st_size) as progress:
        _print([client.files.upload(file, progress=progress)], as_json)


@group.command("list")
def list_files(
    purpose: Annotated[str, typer.Option(help="fine-tune or fine-tune-results; else both.")] = "",
    as_json: Json = False,
) -> None:
    """Your files, newest first; an admin's key shows everybody's."""
    with Client() as client:
        _print(list(client.files.list(purpose)), as_json)


@group.command()
def download(file_id: str, to: Annotated[Path, typer.Argument(dir_okay=False, help="Where to write it.")]) -> None:
    """Fetch a file's bytes."""
    with Client() as client:
        size = client.files.get(file_id).size_bytes
        with transfer(to.name, size) as progress:
            client.files.download(file_id, to, progress=progress)
    print(f"{to}: {show_bytes(size)}")


@group.command()
def delete(file_id: str) -> None:
    """Delete a file; what was made of it stays."""
    with Client() as client:
        client.files.delete(file_id)
    print(f"{file_id} is deleted")


def _print(files: list[File], as_json: bool) -> None:
    if as_json:
        print_json(files)
    else:
        print_table(COLUMNS, map(_row, files))


def _row(file: File) -> tuple[object, ...]:
    size, created = show_bytes(file.size_bytes), show_time(file.create_time)
    return file.id, file.filename, file.purpose, file.num_rows or "-", size, created
