"""`anthesis tokenizers`."""

from typing import Annotated

import typer

from anthesis import Client, TrainTokenizerSpec
from anthesis.cli.job_progress import follow
from anthesis.cli.output import MAX_COUNT, Json, enum_name, print_json
from anthesis.cli.submit import AtPriority, Priority, Watch
from anthesis.v1.job_pb2 import JobPriority, JobState

group = typer.Typer(help="Tokenizers of BLOOM's kind.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="tokenizers")


@group.callback()
def _is_a_group() -> None:
    """Typer would make the only command of a group the group itself."""


@group.command()
def train(
    dataset: Annotated[list[str], typer.Option("--dataset", help="NAME or NAME@VERSION; may be repeated.")],
    vocab_size: Annotated[
        int, typer.Option(min=0, max=MAX_COUNT, help="Tokens, with the 256 bytes and 4 special ones.")
    ],
    min_frequency: Annotated[
        int, typer.Option(min=0, max=MAX_COUNT, help="Merge what occurs this often. 0: twice.")
    ] = 0,
    priority: AtPriority = Priority.NORMAL,
    watch: Watch = False,
    as_json: Json = False,
) -> None:
    """Have a trainer learn a byte-level BPE from datasets; the job names the tokenizer.json's digest."""
    spec = TrainTokenizerSpec(datasets=dataset, vocab_size=vocab_size, min_frequency=min_frequency)
    with Client() as client:
        job = client.jobs.create(spec, priority=JobPriority.Value(f"JOB_PRIORITY_{priority.upper()}"))
        if watch:
            follow(client, job.id, as_json)
        elif as_json:
            print_json(job)
        else:
            print(f"{job.id}: {enum_name(JobState, job.state)}; then `anthesis jobs show {job.id}` names the tokenizer")
