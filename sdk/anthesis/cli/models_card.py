"""`anthesis models card`."""

from pathlib import Path
from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli.output import MAX_COUNT, Json, print_json


def card(
    name: Annotated[str, typer.Argument(help="A model; or a version or an alias, for the version's card.")],
    edit: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Markdown in place of what people wrote; or a whole edited card."
        ),
    ] = None,
    if_generation: Annotated[
        int | None, typer.Option(min=0, max=MAX_COUNT, help="Edit only if the card is at it; 0: nobody wrote on it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a model card, a README.md as on the Hugging Face Hub; with --edit write on it first.

    What stands between the registry's marks is made anew each time; write outside of them.
    """
    text = edit.read_text(encoding="utf-8") if edit else ""
    with Client() as client:
        if edit:
            found = client.models.update_card(name, text, if_generation=if_generation)
        elif if_generation is not None:
            raise ValueError("--if-generation is of --edit; give both, or neither")
        else:
            found = client.models.card(name)
    if as_json:
        print_json(found)
    else:
        print(found.markdown, end="")
