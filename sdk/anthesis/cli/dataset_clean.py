"""`anthesis datasets clean`: a dataset of what is left of others."""

from typing import Annotated

import typer

from anthesis import CleanCorpusSpec, Client
from anthesis.cli.job_progress import follow
from anthesis.cli.output import Json, enum_name, print_json
from anthesis.v1.job_pb2 import JobState


def register(group: typer.Typer) -> None:
    group.command()(clean)


def clean(
    name: Annotated[list[str], typer.Argument(help="Datasets of texts: NAME or NAME@VERSION.")],
    output: Annotated[str, typer.Option(help="The dataset that receives the rows as its next version.")],
    default_language: Annotated[str, typer.Option(help="Of rows that declare none: a code such as sw.")] = "",
    keep_near_duplicates: Annotated[bool, typer.Option("--keep-near-duplicates")] = False,
    keep_foreign_lines: Annotated[
        bool, typer.Option("--keep-foreign-lines", help="Lines surely in another language than their row.")
    ] = False,
    redact: Annotated[
        list[str] | None,
        typer.Option(help="A kind of personal information, such as EMAIL; repeatable. None: all."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    as_json: Json = False,
) -> None:
    """Have a trainer clean text as ROOTS was cleaned: filters, duplicates, personal information."""
    spec = CleanCorpusSpec(
        datasets=name,
        output_dataset=output,
        default_language=default_language,
        keep_near_duplicates=keep_near_duplicates,
        keep_foreign_lines=keep_foreign_lines,
        personal_information=redact,
    )
    with Client() as client:
        job = client.jobs.create(spec)
        if watch:
            follow(client, job.id, as_json)
        elif as_json:
            print_json(job)
        else:
            print(f"{job.id}: {enum_name(JobState, job.state)}; then `anthesis datasets show {output}`")
