"""`anthesis usage`."""

from collections import defaultdict
from datetime import date
from enum import StrEnum
from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli.output import Json, print_json, print_table

COUNTS = ("requests", "prompt_tokens", "completion_tokens")


class By(StrEnum):
    DAY = "day"
    PROJECT = "project"
    PRINCIPAL = "principal"
    MODEL = "model"
    LANGUAGE = "language"


def register(app: typer.Typer) -> None:
    app.command()(usage)


def usage(
    by: Annotated[list[By] | None, typer.Option(help="What to add up by; can be given several times.")] = None,
    project: Annotated[str, typer.Option(help="Only this project's.")] = "",
    since: Annotated[str, typer.Option(help="From this day on (UTC): 2026-11-29.")] = "",
    until: Annotated[str, typer.Option(help="Up to this day, included.")] = "",
    as_json: Json = False,
) -> None:
    """Requests and tokens by day, project, principal, model and language; needs an admin's key."""
    chosen = by or [By.DAY, By.MODEL]
    columns = ["model_version" if item is By.MODEL else item.value for item in chosen]
    sums: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * len(COUNTS))
    with Client() as client:
        for row in client.projects.usage(project=project, since=_day(since), until=_day(until)):
            total = sums[tuple(getattr(row, column) for column in columns)]
            for place, count in enumerate(COUNTS):
                total[place] += getattr(row, count)
    rows = sorted(sums.items())
    if as_json:
        names = (*columns, *COUNTS)
        print_json([dict(zip(names, (*key, *counts), strict=True)) for key, counts in rows])
    else:
        titles = [name.upper().replace("_", " ") for name in (*columns, *COUNTS)]
        print_table(titles, [(*(value or "-" for value in key), *counts) for key, counts in rows])


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise ValueError(f"day {text[:40]!r} is not understood; write 2026-11-29") from None
