"""`anthesis audit`."""

from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli.output import Json, print_json, print_table, show_time
from anthesis.cli.times import parse_time
from anthesis.v1.registry_pb2 import AuditEntry

group = typer.Typer(help="Who changed what, and who was refused what; needs an admin's key.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="audit")


@group.command("list")
def list_entries(
    principal: Annotated[str, typer.Option(help="Only what was done with this principal's keys.")] = "",
    action: Annotated[str, typer.Option(help='Only this, for example "RegistryService.SetAlias".')] = "",
    resource: Annotated[str, typer.Option(help='Only on this, for example "alias/production".')] = "",
    since: Annotated[str, typer.Option(help='From then on: "2h", "7d", "2027-01-31T12:00".')] = "",
    until: Annotated[str, typer.Option(help="Before then.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    as_json: Json = False,
) -> None:
    """The audit log, newest first."""
    now = datetime.now(UTC)
    with Client() as client:
        found = client.audit.list(
            principal=principal,
            action=action,
            resource=resource,
            since=parse_time(since, now, ahead=False) if since else None,
            until=parse_time(until, now, ahead=False) if until else None,
        )
        with closing(found):
            entries = list(islice(found, limit))
    if as_json:
        print_json(entries)
        return
    print_table(("TIME", "PRINCIPAL", "KEY", "ACTION", "RESOURCE", "OUTCOME", "VALUE"), map(_row, entries))


def _row(entry: AuditEntry) -> tuple[object, ...]:
    key, resource, value = entry.key_id or "-", entry.resource or "-", entry.value or "-"
    return show_time(entry.time), entry.principal, key, entry.action or "-", resource, entry.outcome, value
