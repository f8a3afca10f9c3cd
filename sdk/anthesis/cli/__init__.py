"""The `anthesis` command."""

import sys

import typer

from anthesis.cli import (
    aliases,
    artifacts,
    audit,
    datasets,
    deployments,
    evaluations,
    files,
    gates,
    jobs,
    keys,
    licences,
    models,
    plan,
    projects,
    reproduce,
    status,
    text,
    tokenizers,
    usage,
    webhooks,
)
from anthesis.errors import AnthesisError

app = typer.Typer(
    help="Command line of Anthesis, the self-hosted platform for BLOOM models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for module in (
    status,
    text,
    models,
    aliases,
    artifacts,
    datasets,
    files,
    jobs,
    tokenizers,
    reproduce,
    deployments,
    projects,
    usage,
    keys,
    licences,
    evaluations,
    gates,
    audit,
    webhooks,
    plan,
):
    module.register(app)


def main() -> None:
    """Run the command; what fails is one line on stderr and exit code 1."""
    try:
        app(prog_name="anthesis")
    except (AnthesisError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
