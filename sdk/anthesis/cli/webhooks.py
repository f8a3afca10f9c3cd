"""`anthesis webhooks`."""

from itertools import islice
from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli.output import Json, enum_name, print_json, print_table, show_time
from anthesis.v1.webhook_pb2 import Webhook, WebhookDelivery, WebhookDeliveryState

group = typer.Typer(help="URLs that are told about your jobs.", no_args_is_help=True)
Id = Annotated[str, typer.Argument(help="The webhook's id, as `webhooks list` shows it.")]


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="webhooks")


@group.command()
def create(
    url: Annotated[str, typer.Argument(help="https, at a public address.")],
    event: Annotated[
        list[str] | None, typer.Option(help='"job.succeeded" and so on; can be given several times; none: all.')
    ] = None,
    as_json: Json = False,
) -> None:
    """Make one; the secret that its deliveries are signed with is shown this once."""
    with Client() as client:
        created = client.webhooks.create(url, event or ())
    if as_json:
        print_json(created)
    else:
        print(f"{created.webhook.id}\n{created.secret}")


@group.command("list")
def list_webhooks(
    everyone: Annotated[bool, typer.Option("--everyone", help="Everyone's; needs an admin's key.")] = False,
    as_json: Json = False,
) -> None:
    """Your webhooks, newest first, without their secrets."""
    with Client() as client:
        webhooks = client.webhooks.list(everyone=everyone)
    if as_json:
        print_json(webhooks)
    else:
        print_table(("ID", "URL", "EVENTS", "CREATED BY", "CREATED"), map(_row, webhooks))


@group.command()
def delete(webhook_id: Id) -> None:
    """Remove one, with the history of its deliveries."""
    with Client() as client:
        client.webhooks.delete(webhook_id)
    print(f"deleted {webhook_id}")


@group.command()
def deliveries(
    webhook_id: Id,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    as_json: Json = False,
) -> None:
    """What was and is being sent, newest first."""
    with Client() as client:
        found = list(islice(client.webhooks.deliveries(webhook_id), limit))
    if as_json:
        print_json(found)
        return
    columns = ("ID", "EVENT", "JOB", "STATE", "ATTEMPTS", "STATUS", "ERROR", "CREATED", "LAST", "NEXT")
    print_table(columns, map(_delivery_row, found))


@group.command()
def redeliver(
    delivery_id: Annotated[str, typer.Argument(help="As `webhooks deliveries` shows it.")], as_json: Json = False
) -> None:
    """Send a delivery again, under the same id."""
    with Client() as client:
        delivery = client.webhooks.redeliver(delivery_id)
    if as_json:
        print_json(delivery)
    else:
        print(f"{delivery.id}: is sent again")


def _row(webhook: Webhook) -> tuple[object, ...]:
    events = ",".join(webhook.event_types) or "all"
    return webhook.id, webhook.url, events, webhook.created_by, show_time(webhook.create_time)


def _delivery_row(delivery: WebhookDelivery) -> tuple[object, ...]:
    state = enum_name(WebhookDeliveryState, delivery.state)
    times = (delivery.create_time, delivery.last_attempt_time, delivery.next_attempt_time)
    what = (delivery.id, delivery.event_type, delivery.job_id, state, delivery.attempts)
    return *what, delivery.status_code or "-", delivery.error or "-", *map(show_time, times)
