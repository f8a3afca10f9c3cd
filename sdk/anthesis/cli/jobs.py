"""`anthesis pretrain`, `finetune`, `jobs`: submit, look, watch, pause, cancel."""

from enum import StrEnum
from typing import Annotated

import typer

from anthesis import Client
from anthesis.cli import search, submit
from anthesis.cli.job_progress import follow
from anthesis.cli.output import Json, enum_name, print_json, print_table, show_time
from anthesis.jobs import ENDED
from anthesis.v1.job_pb2 import Job, JobPriority, JobState

group = typer.Typer(help="Training jobs.", no_args_is_help=True)
JobId = Annotated[str, typer.Argument(help="The job's id, as `jobs list` shows it.")]


class State(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PAUSED = "paused"


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="jobs")
    submit.register(app)


@group.command("list")
def list_jobs(
    state: Annotated[State | None, typer.Option(help="Only jobs in this state.")] = None,
    text: Annotated[str, typer.Option("--search", help="Only those whose output or base has this in its name.")] = "",
    output_model: Annotated[str, typer.Option(help="Only those that make versions of this model.")] = "",
    base: Annotated[str, typer.Option(help="Only those tuned from this version.")] = "",
    dataset: search.Dataset = "",
    created_by: search.CreatedBy = "",
    since: search.Since = "",
    until: search.Until = "",
    as_json: Json = False,
) -> None:
    """Jobs, newest first."""
    number = JobState.Value(f"JOB_STATE_{state.name}") if state else JobState.JOB_STATE_UNSPECIFIED
    query = search.asked(
        since, until, text=text, output_model=output_model, base=base, dataset=dataset, created_by=created_by
    )
    with Client() as client:
        jobs = client.jobs.list(number, **query)
    if as_json:
        print_json(jobs)
    else:
        columns = ("ID", "KIND", "OUTPUT", "STATE", "STEP", "LOSS", "ATTEMPTS", "PRIORITY", "CREATED")
        print_table(columns, map(_row, jobs))


@group.command()
def show(job_id: JobId, as_json: Json = False) -> None:
    """One job: its specification, state, progress and result."""
    with Client() as client:
        job = client.jobs.get(job_id)
    if as_json:
        print_json(job)
    else:
        print(str(job).rstrip())


@group.command()
def watch(
    job_id: JobId,
    after: Annotated[
        int, typer.Option(min=0, help="Only events after this one: its `sequence`, as --json prints it.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Follow a job to its end, also over restarts of the registry. Exit code 1 unless it succeeds.

    With --json each event is one line.
    """
    with Client() as client:
        follow(client, job_id, as_json, after)


@group.command()
def logs(
    job_id: JobId,
    tail: Annotated[int, typer.Option(min=0, max=1000, help="Only so many of the last lines; 0: all.")] = 0,
    follow_it: Annotated[bool, typer.Option("--follow", help="And then new lines as they come.")] = False,
) -> None:
    """What the job's processes printed, as far as it is kept."""
    with Client() as client:
        for line in client.jobs.logs(job_id, tail=tail, follow=follow_it):
            print(plain_line(line), flush=follow_it)


@group.command()
def pause(job_id: JobId, as_json: Json = False) -> None:
    """Have a job wait; one that runs stops with a checkpoint first."""
    with Client() as client:
        job = client.jobs.pause(job_id)
    _say(job, as_json, "pause requested" if job.pause_requested else "")


@group.command()
def resume(job_id: JobId, as_json: Json = False) -> None:
    """Let a paused job go on from its checkpoint."""
    with Client() as client:
        job = client.jobs.resume(job_id)
    _say(job, as_json, "")


@group.command()
def cancel(job_id: JobId, as_json: Json = False) -> None:
    """Ask a job to end."""
    with Client() as client:
        job = client.jobs.cancel(job_id)
    _say(job, as_json, "cancel requested")


def plain_line(line: str) -> str:
    """Without what would steer the terminal: jobs print what their data say."""
    return "".join(character if character.isprintable() or character == "\t" else "\ufffd" for character in line)


def _say(job: Job, as_json: bool, more: str) -> None:
    if as_json:
        print_json(job)
    else:
        print(", ".join(filter(None, [f"{job.id}: {enum_name(JobState, job.state)}", more])))


def _row(job: Job) -> tuple[object, ...]:
    step, loss = "-", "-"
    if job.HasField("progress"):
        step, loss = f"{job.progress.step}/{job.progress.total_steps}", f"{job.progress.loss:.4f}"
    state = enum_name(JobState, job.state)
    if job.cancel_requested and job.state not in ENDED:
        state += " (cancel requested)"
    elif job.pause_requested:
        state += " (pause requested)"
    kind = str(job.WhichOneof("spec"))
    priority = enum_name(JobPriority, job.priority)
    return job.id, kind, _output(job), state, step, loss, job.attempts, priority, show_time(job.create_time)


def _output(job: Job) -> str:
    """The model that receives the version; of others what they look at."""
    if job.HasField("evaluate"):
        return f"{job.evaluate.version} by {job.evaluate.suite}"
    if job.HasField("validate_dataset"):
        return f"report on {job.validate_dataset.dataset}"
    if job.HasField("train_tokenizer"):
        return job.tokenizer_digest or f"a tokenizer of {', '.join(job.train_tokenizer.datasets)}"
    if job.HasField("clean_corpus"):
        return job.dataset or f"dataset {job.clean_corpus.output_dataset}"
    if job.HasField("import_model"):
        return job.import_model.model
    return job.pretrain.output_model if job.HasField("pretrain") else job.fine_tune.output_model
