"""What lists can be asked for on the command line."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from anthesis.cli.times import parse_time

Text = Annotated[str, typer.Option("--search", help="Only those whose names, descriptions or tags have this in them.")]
Licence = Annotated[str, typer.Option(help="Only those under this licence.")]
Language = Annotated[str, typer.Option(help="Only those of models in this language.")]
Tag = Annotated[str, typer.Option(help="Only those with this tag.")]
Dataset = Annotated[str, typer.Option(help="Only those trained on this data set.")]
CreatedBy = Annotated[str, typer.Option(help="Only this principal's.")]
Since = Annotated[str, typer.Option(help='Made from then on: "2h", "7d", "2027-01-31T12:00".')]
Until = Annotated[str, typer.Option(help="Made before then.")]
Deleted = Annotated[bool, typer.Option("--deleted", help="Deleted ones, too.")]


def asked(since: str = "", until: str = "", **query: Any) -> Mapping[str, Any]:
    """The query of what was said on the command line: nothing where nothing was said. Raises ValueError."""
    now = datetime.now(UTC)
    times = {name: parse_time(text, now, ahead=False) for name, text in (("since", since), ("until", until)) if text}
    return {name: value for name, value in query.items() if value} | times
