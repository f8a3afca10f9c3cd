"""`anthesis keys`."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli.output import Json, enum_name, print_json, print_table, show_time
from anthesis.cli.times import parse_time
from anthesis.v1.registry_pb2 import ApiKey, Permission, Role

group = typer.Typer(help="API keys; needs an admin's.", no_args_is_help=True)


class RoleName(StrEnum):
    VIEWER = "viewer"
    USER = "user"
    TRAINER = "trainer"
    ADMIN = "admin"
    SERVICE = "service"


class Scope(StrEnum):
    READ = "read"
    GENERATE = "generate"
    TRAIN = "train"
    ADMIN = "admin"
    INTERNAL = "internal"
    OPERATE = "operate"


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="keys")


@group.command()
def create(
    principal: Annotated[str, typer.Argument(help="Whose key it is.")],
    role: Annotated[RoleName, typer.Option(help="What it may do.")] = RoleName.USER,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="Of what the role may, this alone; can be given several times.")
    ] = None,
    expires: Annotated[str, typer.Option(help='When it ends: "12h", "90d", "2027-01-31"; by default never.')] = "",
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    project: Annotated[str, typer.Option(help="Of which project it is; by default as the key that makes it.")] = "",
    as_json: Json = False,
) -> None:
    """Make a key; its secret is shown this once."""
    expire_time = parse_time(expires, datetime.now(UTC), ahead=True) if expires else None
    scopes = [Permission.Value(f"PERMISSION_{item.name}") for item in scope or ()]
    with Client() as client:
        number = Role.Value(f"ROLE_{role.name}")
        created = client.keys.create(
            principal, number, label=label, scopes=scopes, expire_time=expire_time, project=project
        )
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
    columns = ("ID", "PRINCIPAL", "ROLE", "SCOPES", "LABEL", "CREATED", "EXPIRES", "REVOKED", "LAST USED", "PROJECT")
    print_table(columns, map(_row, keys))


@group.command()
def revoke(key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")]) -> None:
    """Make a key worthless; services notice within a minute."""
    with Client() as client:
        key = client.keys.revoke(key_id)
    print(f"revoked {key.id} of {key.principal}")


def _row(key: ApiKey) -> tuple[object, ...]:
    role = enum_name(Role, key.role).lower()
    scopes = ",".join(enum_name(Permission, scope).lower() for scope in key.scopes) or "all"
    times = (key.create_time, key.expire_time, key.revoke_time, key.last_used_time)
    return key.id, key.principal, role, scopes, key.label or "-", *map(show_time, times), key.project or "-"
