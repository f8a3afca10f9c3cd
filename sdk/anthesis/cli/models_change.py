"""`anthesis models delete`, `undelete`, `tag`."""

from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli.output import Json, print_json, show_time
from anthesis.v1.registry_pb2 import Model, ModelVersion

Name = Annotated[str, typer.Argument(help='A version, "<model>@<number>", or a model.')]


def delete(name: Name, as_json: Json = False) -> None:
    """Delete a version that nothing needs, or a model whose versions are deleted. `undelete` brings it back."""
    with Client() as client:
        gone: Model | ModelVersion = client.models.delete_version(name) if "@" in name else client.models.delete(name)
    if as_json:
        print_json(gone)
        return
    until = f"; its files are kept until {show_time(gone.expire_time)}" if isinstance(gone, ModelVersion) else ""
    print(f"{gone.name} is deleted{until}")


def undelete(name: Name, as_json: Json = False) -> None:
    """Bring a deleted version or model back."""
    with Client() as client:
        back: Model | ModelVersion = (
            client.models.undelete_version(name) if "@" in name else client.models.undelete(name)
        )
    if as_json:
        print_json(back)
    else:
        print(f"{back.name} is back")


def tag(
    name: Name,
    add: Annotated[list[str] | None, typer.Option(help="A tag that it gets; again for more.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A tag that it loses; again for more.")] = None,
    as_json: Json = False,
) -> None:
    """Change the tags of a model or a version, and print those it has then."""
    with Client() as client:
        tags = client.models.tag(name, add=add or (), remove=remove or ())
    if as_json:
        print_json(list(tags))
    else:
        print(", ".join(tags) or f"{name} has no tags")
