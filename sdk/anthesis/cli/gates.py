"""`anthesis gates`."""

from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli.output import Json, print_json, print_table, show_time
from anthesis.v1.evaluation_pb2 import Gate

group = typer.Typer(help="What a version must not lose before an alias moves to it.", no_args_is_help=True)
Alias = Annotated[str, typer.Argument(help="The alias.")]


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="gates")


@group.command("set")
def set_gate(
    alias: Alias,
    suite: Annotated[str, typer.Option(help="Of bits per byte, by which both versions are measured.")],
    max_regression: Annotated[
        float, typer.Option(min=0, max=1000, help="Percent of bits per byte that a language may get worse by.")
    ],
    language: Annotated[
        list[str] | None, typer.Option(help="A language that counts; may be repeated. None: all measured.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let an alias move only to versions that are no worse, in place of the gate it has."""
    with Client() as client:
        gate = client.gates.set(alias, suite, max_regression_percent=max_regression, languages=language or [])
    _print(gate, as_json)


@group.command()
def show(alias: Alias, as_json: Json = False) -> None:
    """An alias's gate."""
    with Client() as client:
        gate = client.gates.get(alias)
    _print(gate, as_json)


@group.command("list")
def list_gates(as_json: Json = False) -> None:
    """All gates."""
    with Client() as client:
        gates = client.gates.list()
    if as_json:
        print_json(gates)
        return
    rows = [
        (gate.alias, gate.suite, f"{gate.max_regression_percent:g}", _languages(gate), show_time(gate.create_time))
        for gate in gates
    ]
    print_table(("ALIAS", "SUITE", "MAX REGRESSION %", "LANGUAGES", "SINCE"), rows)


@group.command()
def remove(alias: Alias) -> None:
    """Let an alias move freely again."""
    with Client() as client:
        client.gates.delete(alias)
    print(f"{alias} has no gate any more")


def _print(gate: Gate, as_json: bool) -> None:
    if as_json:
        print_json(gate)
        return
    allowed = f"more than {gate.max_regression_percent:g} % bits per byte"
    print(f"{gate.alias} moves where by {gate.suite} nothing gets worse by {allowed} ({_languages(gate)})")


def _languages(gate: Gate) -> str:
    return ", ".join(gate.languages) or "all languages"
