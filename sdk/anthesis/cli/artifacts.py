"""`anthesis artifacts`, and what `anthesis models` does with a version's files."""

import re
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli.output import Json, enum_name, print_json, print_table, show_bytes, show_time, stderr, transfer
from anthesis.v1.registry_pb2 import (
    ARTIFACT_STATE_OK,
    ArtifactState,
    CollectGarbageResponse,
    Upload,
    VerifyArtifactsResponse,
)

TOKENIZER_FILE = "tokenizer.json"
CARD_FILE, OTHER_CARD_FILE = "README.md", "MODEL_CARD.md"  # the second beside a README.md that older versions have
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
group = typer.Typer(help="Content-addressed files: weights, tokenizers, datasets.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="artifacts")


@group.command()
def upload(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    again: Annotated[bool, typer.Option("--again", help="Send it even if it is there, to repair it.")] = False,
    as_json: Json = False,
) -> None:
    """Store a file and print its digest. Begun again after a break, it goes on where it was."""
    with Client() as client, transfer(file.name, file.stat().st_size) as progress:
        artifact = client.artifacts.upload(file, again=again, progress=progress)
    if as_json:
        print_json(artifact)
    else:
        print(artifact.digest)


@group.command()
def uploads(as_json: Json = False) -> None:
    """Your uploads that are not finished, oldest first."""
    with Client() as client:
        found = client.artifacts.list_uploads()
    if as_json:
        print_json(found)
    else:
        print_table(("UPLOAD", "ARTIFACT", "RECEIVED", "OF", "BEGAN", "EXPIRES"), map(_upload_row, found))


@group.command()
def abandon(
    ids: Annotated[list[str], typer.Argument(metavar="UPLOAD...", help="As `artifacts uploads` shows them.")],
) -> None:
    """Drop unfinished uploads with what came of them. One that is being sent ends."""
    with Client() as client:
        for upload_id in ids:
            client.artifacts.abandon_upload(upload_id)
            print(f"{upload_id} is abandoned")


@group.command()
def download(digest: str, file: Annotated[Path, typer.Argument(dir_okay=False, help="Where it shall lie.")]) -> None:
    """Fetch an artifact, verified. Begun again after a break, it goes on where it was (FILE.part)."""
    with Client() as client:
        _download(client, digest, file)
    print(file)


@group.command()
def verify(
    digests: Annotated[list[str] | None, typer.Argument(metavar="[DIGEST]...", help="Which.")] = None,
    all_of_them: Annotated[
        bool, typer.Option("--all", help="Everything stored, and what should be; needs an admin's key.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Have artifacts hashed again where they lie. Exit code 1 where one is missing or damaged."""
    with Client() as client:
        report_verified(client.artifacts.verify(digests or (), all=all_of_them), as_json)


@group.command()
def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; without this it is only listed.")] = False,
    older_than: Annotated[str, typer.Option(help="Leave alone what was written since: 90m, 12h, 2d.")] = "1d",
    as_json: Json = False,
) -> None:
    """List, or delete, what no version, dataset, job or upload needs. Needs an admin's key."""
    with Client() as client:
        found = list(client.artifacts.collect_garbage(delete=delete, older_than=parse_age(older_than)))
    if as_json:
        print_json(found)
        return
    print_table(("ARTIFACT", "SIZE", "WRITTEN", "DELETED"), map(_garbage_row, found))
    total = show_bytes(sum(item.size_bytes for item in found))
    print(f"{len(found)} files, {total}, {'deleted' if delete else 'not needed; --delete deletes them'}")


def verify_model(
    name: Annotated[str, typer.Argument(help="A version, an alias or a model.")], as_json: Json = False
) -> None:
    """Have a version's files and tokenizer hashed again where they lie. Exit code 1 where one is missing or damaged."""
    with Client() as client:
        report_verified(client.artifacts.verify(version=name), as_json)


def download_model(
    name: Annotated[str, typer.Argument(help="A version, an alias or a model.")],
    folder: Annotated[Path, typer.Option("--to", file_okay=False, help="The folder they are laid out in.")],
) -> None:
    """Fetch a version's files and tokenizer, verified, and its card. Begun again, it goes on where it was."""
    with Client() as client:
        version = client.models.get_version(name)
        card = client.models.card(version.name).markdown
        files = {file.path: file.digest for file in version.files}
        for path, digest in ({TOKENIZER_FILE: version.tokenizer_digest} | files).items():
            if not (folder / path).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"file name {path!r} of {version.name} leaves {folder}; nothing of it is written")
            _download(client, digest, folder / path)
    (folder / (CARD_FILE if CARD_FILE not in files else OTHER_CARD_FILE)).write_text(card, encoding="utf-8")
    print(f"{version.name}, licence {version.licence}: {folder}")


def report_verified(results: Iterable[VerifyArtifactsResponse], as_json: bool) -> None:
    """Print them and end the command, with exit code 1 unless all are well."""
    with stderr.status("artifacts are being hashed"):
        found = list(results)
    if as_json:
        print_json(found)
    else:
        print_table(("ARTIFACT", "STATE", "BYTES", "NEEDED BY"), map(_verified_row, found))
    if any(item.state != ARTIFACT_STATE_OK for item in found):
        raise typer.Exit(1)


def parse_age(text: str) -> timedelta:
    """ "90m" -> 90 minutes. Raises ValueError."""
    found = re.fullmatch(r"(\d{1,4})([smhd])", text)
    if not found:
        raise ValueError(f"{text!r} is no age; write a number and s, m, h or d, for example 12h")
    return timedelta(seconds=int(found[1]) * UNITS[found[2]])


def _download(client: Client, digest: str, file: Path) -> None:
    with transfer(file.name, client.artifacts.get(digest).size_bytes) as progress:
        client.artifacts.download(digest, file, progress=progress)


def _verified_row(item: VerifyArtifactsResponse) -> tuple[object, ...]:
    state = enum_name(ArtifactState, item.state)
    return item.artifact.digest, state, item.artifact.size_bytes, ", ".join(item.needed_by) or "-"


def _upload_row(item: Upload) -> tuple[object, ...]:
    expires = "being sent" if item.being_sent else show_time(item.expire_time)
    received, size = show_bytes(item.received_bytes), show_bytes(item.size_bytes)
    return item.id, item.digest, received, size, show_time(item.create_time), expires


def _garbage_row(item: CollectGarbageResponse) -> tuple[object, ...]:
    return item.name, show_bytes(item.size_bytes), show_time(item.modify_time), "yes" if item.deleted else "no"
