"""`anthesis keys`."""

from enum import StrEnum
from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli.output import Json, enum_name, print_json, print_table, show_time
from anthesis.v1.registry_pb2 import ApiKey, Role

group = typer.Typer(help="API keys; needs an admin's.", no_args_is_help=True)


class RoleName(StrEnum):
    USER = "user"
    ADMIN = "admin"
    SERVICE = "service"


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="keys")


@group.command()
def create(
    principal: Annotated[str, typer.Argument(help="Whose key it is.")],
    role: Annotated[RoleName, typer.Option(help="What it may do.")] = RoleName.USER,
    as_json: Json = False,
) -> None:
    """Make a key; its secret is shown this once."""
    with Client() as client:
        created = client.keys.create(principal, Role.Value(f"ROLE_{role.name}"))
    if as_json:
        print_json(created)
    else:
        print(created.secret)


@group.command("list")
def list_keys(as_json: Json = False) -> None:
    """All keys, without their secrets."""
    with Client() as client:
        keys = client.keys.list()
    if as_json:
        print_json(keys)
        return
    print_table(("ID", "PRINCIPAL", "ROLE", "CREATED", "REVOKED"), map(_row, keys))


@group.command()
def revoke(key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")]) -> None:
    """Make a key worthless; services notice within a minute."""
    with Client() as client:
        key = client.keys.revoke(key_id)
    print(f"revoked {key.id} of {key.principal}")


def _row(key: ApiKey) -> tuple[object, ...]:
    role = enum_name(Role, key.role).lower()
    return key.id, key.principal, role, show_time(key.create_time), show_time(key.revoke_time)
