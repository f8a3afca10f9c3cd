"""`anthesis deploy`, `undeploy`."""

from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli.output import MAX_COUNT, Json, print_json, stderr


def register(app: typer.Typer) -> None:
    app.command()(deploy)
    app.command()(undeploy)


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
