"""`anthesis datasets validate`, `anthesis datasets report`: a dataset's rows, looked through before training."""

from typing import Annotated, Any

import typer

from anthesis import Client, ValidateDatasetSpec
from anthesis.cli.job_progress import follow
from anthesis.cli.output import MAX_COUNT, Json, enum_name, print_json, print_table
from anthesis.report_text import sentences
from anthesis.v1.job_pb2 import JobState

Name = Annotated[str, typer.Argument(help="A dataset, which means its newest version, or NAME@VERSION.")]


def register(group: typer.Typer) -> None:
    group.command()(validate)
    group.command()(report)


def validate(
    name: Name,
    base: Annotated[str, typer.Option(help="A model, version or alias whose tokenizer counts tokens.")] = "",
    tokenizer: Annotated[str, typer.Option(help="Or a tokenizer.json's digest.")] = "",
    sequence_length: Annotated[
        int, typer.Option(min=0, max=MAX_COUNT, help="Tokens; rows that are longer are counted. 0: 512.")
    ] = 0,
    held_out: Annotated[
        list[str] | None,
        typer.Option(help="A dataset that is held out: shared text is found. May be repeated."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end, then print the report.")] = False,
    as_json: Json = False,
) -> None:
    """Have a trainer look through the rows and write a report."""
    spec = ValidateDatasetSpec(
        dataset=name, base=base, tokenizer_digest=tokenizer, sequence_length=sequence_length, held_out=held_out
    )
    with Client() as client:
        job = client.jobs.create(spec)
        if watch:
            follow(client, job.id, as_json)
            if not as_json:
                _print(client.datasets.report(job.validate_dataset.dataset))
        elif as_json:
            print_json(job)
        else:
            print(f"{job.id}: {enum_name(JobState, job.state)}; then `anthesis datasets report {name}`")


def report(name: Name, as_json: Json = False) -> None:
    """The newest report on a dataset's rows."""
    with Client() as client:
        found = client.datasets.report(name)
    if as_json:
        print_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    print(f"{found['dataset']}: {found['rows']:,} rows\n")
    for about, sentence in sentences(found):
        print(f"{about}: {sentence}")
    print()
    print_table(("TOKENS UP TO", "ROWS"), [(step["up_to"], step["rows"]) for step in found["lengths"]["histogram"]])
