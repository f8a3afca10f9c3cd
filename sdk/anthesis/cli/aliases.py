"""`anthesis aliases`."""

from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli.output import MAX_COUNT, Json, enum_name, print_json, print_table, show_time
from anthesis.v1.registry_pb2 import Alias, AliasChange, AliasChangeKind

group = typer.Typer(help="Names that point at versions, and where they pointed.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The alias.")]
Reason = Annotated[str, typer.Option(help="Why, for the history: a line.")]
IfGeneration = Annotated[
    int | None,
    typer.Option(
        min=0, max=MAX_COUNT, help="Only if this is its newest generation; 0: only if there is no such alias."
    ),
]


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="aliases")


@group.command("list")
def list_aliases(as_json: Json = False) -> None:
    """Every alias and the version it names now."""
    with Client() as client:
        aliases = client.aliases.list()
    if as_json:
        print_json(aliases)
    else:
        rows = [(alias.name, alias.version, alias.generation, show_time(alias.update_time)) for alias in aliases]
        print_table(("ALIAS", "VERSION", "GENERATION", "SINCE"), rows)


@group.command("set")
def set_alias(
    name: Name,
    version: Annotated[str, typer.Argument(help='What it shall point at: "<model>@<number>".')],
    if_generation: IfGeneration = None,
    reason: Reason = "",
    override_gate: Annotated[
        bool, typer.Option("--override-gate", help="Even where its gate refuses; needs --reason.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Point an alias at a version; its deployments follow. Its gate may refuse (`anthesis gates`)."""
    with Client() as client:
        alias = client.aliases.set(
            name, version, if_generation=if_generation, reason=reason, override_gate=override_gate
        )
    _print(alias, as_json)


@group.command()
def history(
    name: Name,
    limit: Annotated[int, typer.Option(min=1, help="How many changes at most.")] = 50,
    as_json: Json = False,
) -> None:
    """An alias's changes, newest first: when, how, by whom and why; also of one that was deleted."""
    with Client() as client:
        changes = list(islice(client.aliases.history(name), limit))
    if as_json:
        print_json(changes)
    else:
        print_table(("GENERATION", "VERSION", "CHANGE", "TIME", "BY", "REASON"), map(_row, changes))


@group.command()
def resolve(
    name: Name,
    at: Annotated[str, typer.Option(help="A time, 2026-11-29T12:30:00 (local, or with Z); else now.")] = "",
    as_json: Json = False,
) -> None:
    """The version that an alias points to, or pointed to at a time."""
    time = _time(at) if at else None
    with Client() as client:
        found = client.aliases.resolve(name, at=time)
    if as_json:
        print_json(found)
    else:
        print(found.version.name)


@group.command()
def rollback(
    name: Name,
    generation: Annotated[
        int | None, typer.Option(min=1, max=MAX_COUNT, help="Back to this one; else to the version before.")
    ] = None,
    if_generation: IfGeneration = None,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Point an alias back at the version before the current one. Done twice, it goes two versions back."""
    with Client() as client:
        alias = client.aliases.rollback(name, generation=generation, if_generation=if_generation, reason=reason)
    _print(alias, as_json)


@group.command()
def delete(name: Name, if_generation: IfGeneration = None, reason: Reason = "") -> None:
    """Let a name point nowhere; its history stays, and `rollback` brings it back."""
    with Client() as client:
        client.aliases.delete(name, if_generation=if_generation, reason=reason)
    print(f"{name} is deleted")


def _print(alias: Alias, as_json: bool) -> None:
    if as_json:
        print_json(alias)
    else:
        print(f"{alias.name} -> {alias.version} (generation {alias.generation})")


def _row(change: AliasChange) -> tuple[object, ...]:
    kind = enum_name(AliasChangeKind, change.kind).lower()
    if change.restored_generation:
        kind += f" to {change.restored_generation}"
    if change.overridden:
        kind += " over its gate"
    version, principal = change.version or "-", change.principal or "-"
    return change.generation, version, kind, show_time(change.time), principal, change.reason or "-"


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"--at {text[:40]!r} is no time; write 2026-11-29T12:30:00, with Z for UTC") from None
