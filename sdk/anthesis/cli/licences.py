"""`anthesis licences`."""

from pathlib import Path
from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli.output import Json, print_json, print_table, show_time
from anthesis.v1.licence_pb2 import Acceptance, Licence

group = typer.Typer(help="Licences of models, and what you have accepted.", no_args_is_help=True)
Id = Annotated[str, typer.Argument(help='Its id, for example "bigscience-rail-1.0".')]


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="licences")


@group.command("list")
def list_licences(as_json: Json = False) -> None:
    """All licences, and whether you have accepted those that have to be."""
    with Client() as client:
        licences, acceptances = client.licences.list(), client.licences.accepted()
    if as_json:
        print_json(licences)
        return
    accepted = {(found.licence, found.digest) for found in acceptances}
    print_table(("ID", "NAME", "ACCEPTANCE", "TEXT"), [_row(licence, accepted) for licence in licences])


@group.command()
def show(licence: Id, as_json: Json = False) -> None:
    """A licence's whole text."""
    with Client() as client:
        found = client.licences.get(licence)
    if as_json:
        print_json(found)
    else:
        print(found.text)


@group.command()
def accept(
    licence: Id,
    digest: Annotated[str, typer.Option(help="Of the text that you have read; else that of the text as it is.")] = "",
    as_json: Json = False,
) -> None:
    """Accept a licence, under the name of your API key; prints what it forbids."""
    with Client() as client:
        found = client.licences.get(licence)
        acceptance = client.licences.accept(found.id, digest or found.digest)
    if as_json:
        print_json(acceptance)
        return
    if found.use_restrictions:
        print(found.use_restrictions)
    when = show_time(acceptance.time)
    print(f"{acceptance.principal} accepted {found.id} ({found.name}), {acceptance.digest}, at {when}")


@group.command()
def accepted(
    principal: Annotated[str, typer.Option(help="Whose; needs an admin's key.")] = "",
    everyone: Annotated[bool, typer.Option("--everyone", help="Everyone's; needs an admin's key.")] = False,
    as_json: Json = False,
) -> None:
    """What you have accepted, the newest first."""
    with Client() as client:
        found = client.licences.accepted(principal, everyone=everyone)
    if as_json:
        print_json(found)
        return
    print_table(("PRINCIPAL", "LICENCE", "TIME", "KEY", "TEXT"), map(_accepted_row, found))


@group.command()
def create(
    licence: Id,
    name: Annotated[str, typer.Option(help="What people call it.")],
    text: Annotated[Path, typer.Option(help="A file with its whole text, in UTF-8.")],
    must_accept: Annotated[bool, typer.Option("--must-accept", help="Nobody uses what is under it before.")] = False,
    as_json: Json = False,
) -> None:
    """Register a licence, for good; needs an admin's key."""
    with Client() as client:
        made = client.licences.create(licence, name=name, text=text.read_bytes().decode(), must_accept=must_accept)
    if as_json:
        print_json(made)
    else:
        print(f"{made.id}: {made.name}, {made.digest}")


def _row(licence: Licence, accepted: set[tuple[str, str]]) -> tuple[object, ...]:
    done = "accepted" if (licence.id, licence.digest) in accepted else "needed"
    return licence.id, licence.name, done if licence.must_accept else "not needed", licence.digest


def _accepted_row(found: Acceptance) -> tuple[object, ...]:
    return found.principal, found.licence, show_time(found.time), found.key_id, found.digest
