"""`anthesis reproduce`: the job that made a version, run again, and what came of it."""

import sys
from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli.comparison import compare, report
from anthesis.cli.job_progress import follow
from anthesis.cli.output import Json
from anthesis.cli.submit import Options, parse_options
from anthesis.errors import FailedPreconditionError
from anthesis.v1.job_pb2 import JOB_STATE_SUCCEEDED


def register(app: typer.Typer) -> None:
    app.command("reproduce")(reproduce)


def reproduce(
    version: Annotated[str, typer.Argument(help="A version that a job made; an alias or a model.")],
    output: Annotated[
        str, typer.Option("--output", help='Model that receives the new version; "<model>-reproduced" by default.')
    ] = "",
    option: Options = None,
    as_json: Json = False,
) -> None:
    """Run the job that made a version again, on the same data with the same recipe, and compare the weights.

    Exit code 0: bitwise equal. 3: not, and by how much. 1: it could not be run, or the job failed. With --option what
    is to be otherwise, for example another layout.
    """
    with Client() as client:
        first = client.models.get_version(version).name  # before anything is made: an alias may move
        job = client.jobs.reproduce(first, output_model=output, changes=parse_options(option or []))
        print(f"{job.id}: running {first} again", file=sys.stderr)
        if as_json:
            ended = client.jobs.wait(job.id)
            if ended.state != JOB_STATE_SUCCEEDED:
                raise FailedPreconditionError(f"{job.id} did not succeed: {ended.error.code} {ended.error.message}")
        else:
            follow(client, job.id, as_json=False)
        report(compare(client, first, client.jobs.get(job.id).model_version), as_json)
