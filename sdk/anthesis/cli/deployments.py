"""`anthesis deploy`, `undeploy`, `alias`."""

from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli.output import MAX_COUNT, Json, print_json, print_table, show_time, stderr

group = typer.Typer(help="Names that point at versions.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.command()(deploy)
    app.command()(undeploy)
    app.add_typer(group, name="alias")


def deploy(
    target: Annotated[str, typer.Argument(help="An alias (the deployment follows it) or a version.")],
    name: Annotated[str, typer.Option(help="The deployment's name; else the target.")] = "",
    replicas: Annotated[int, typer.Option(min=0, max=MAX_COUNT, help="Workers that should have it; 0: all.")] = 0,
    wait: Annotated[bool, typer.Option(help="Wait until a worker has loaded it.")] = True,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 600.0,
    as_json: Json = False,
) -> None:
    """Have inference workers load a version."""
    with Client() as client:
        deployment = client.deployments.create(target, name=name, replicas=replicas)
        if wait:
            with stderr.status(f"{deployment.version} is being loaded"):
                deployment = client.deployments.wait(deployment.name, timeout_s=timeout)
    if as_json:
        print_json(deployment)
    else:
        state = f"ready on {deployment.ready_replicas} worker(s)" if wait else "asked for"
        print(f"{deployment.name}: {deployment.version} {state}")


def undeploy(name: Annotated[str, typer.Argument(help="The deployment.")]) -> None:
    """Let workers unload it."""
    with Client() as client:
        client.deployments.delete(name)
    print(f"{name} is no longer deployed")


@group.command("set")
def set_alias(
    name: Annotated[str, typer.Argument(help="The alias.")],
    version: Annotated[str, typer.Argument(help='What it shall point at: "<model>@<number>".')],
    as_json: Json = False,
) -> None:
    """Point an alias at a version; its deployments follow."""
    with Client() as client:
        alias = client.models.set_alias(name, version)
    if as_json:
        print_json(alias)
    else:
        print(f"{alias.name} -> {alias.version}")


@group.command("list")
def list_aliases(as_json: Json = False) -> None:
    """Every alias and the version it names now."""
    with Client() as client:
        aliases = client.models.list_aliases()
    if as_json:
        print_json(aliases)
    else:
        rows = [(alias.name, alias.version, show_time(alias.update_time)) for alias in aliases]
        print_table(("ALIAS", "VERSION", "SINCE"), rows)
