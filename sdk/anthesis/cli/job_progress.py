"""A job as it runs: a bar on a terminal, lines elsewhere."""

import json
from collections.abc import Sequence

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from anthesis import Client
from anthesis.cli.output import enum_name, plain, show_flops, stderr
from anthesis.v1.job_pb2 import JOB_STATE_SUCCEEDED, Job, JobEvent, JobState, TrainingProgress, ValidationLoss


def follow(client: Client, job_id: str, as_json: bool, after: int = 0) -> None:
    """Show a job's events after a cursor until it ends. Raises typer.Exit(1) unless it succeeds."""
    if as_json:
        for event in client.jobs.watch(job_id, after_sequence=after):
            print(json.dumps(plain(event), ensure_ascii=False), flush=True)
    elif stderr.is_terminal:
        _show_bar(client, job_id, after)
    else:
        for event in client.jobs.watch(job_id, after_sequence=after):
            print(event_line(event), flush=True)
    job = client.jobs.get(job_id)
    if not as_json:
        print(_outcome(job))
    if job.state != JOB_STATE_SUCCEEDED:
        raise typer.Exit(1)


def _show_bar(client: Client, job_id: str, after: int) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=stderr) as progress:
        task = progress.add_task("PENDING", total=None, figures="")
        for event in client.jobs.watch(job_id, after_sequence=after):
            if event.WhichOneof("event") == "progress":
                now = event.progress
                for line in _validation(now):
                    progress.console.print(line, markup=False)
                progress.update(task, completed=now.step, total=now.total_steps, figures=_figures(now))
            elif event.WhichOneof("event") == "state":
                progress.update(task, description=enum_name(JobState, event.state))
            else:
                progress.console.print(event.message, markup=False)


def event_line(event: JobEvent) -> str:
    """What `watch` prints where there is no terminal."""
    match event.WhichOneof("event"):
        case "progress":
            step = f"step {event.progress.step}/{event.progress.total_steps}  {_figures(event.progress)}"
            return "\n".join([step, *_validation(event.progress)])
        case "state":
            return enum_name(JobState, event.state)
        case _:
            return event.message


def _figures(now: TrainingProgress) -> str:
    minutes, seconds = divmod(round(now.seconds_left), 60)
    speed = f"{now.tokens_per_second:,.0f} tokens/s  {show_flops(now.model_flops_per_second)}"
    if now.hardware_flops_per_second > now.model_flops_per_second:
        speed += f" (hardware {show_flops(now.hardware_flops_per_second)})"
    return f"loss {now.loss:.4f}  lr {now.learning_rate:.2e}  {speed}  {minutes}:{seconds:02} left"


def _validation(now: TrainingProgress) -> list[str]:
    """A line for each validation dataset: "validation after step 100, held-out: 1.532 bits per byte (en 1.4, …)"."""
    found: dict[str, list[ValidationLoss]] = {}
    for loss in now.validation:
        found.setdefault(loss.dataset, []).append(loss)
    return [
        f"validation after step {now.validation_step}, {dataset}: {_in_all(losses):.4f} bits per byte"
        f" ({', '.join(map(_one_language, losses))})"
        for dataset, losses in found.items()
    ]


def _one_language(loss: ValidationLoss) -> str:
    return f"{loss.language or 'unknown'} {loss.bits_per_byte:.4f}"


def _in_all(losses: Sequence[ValidationLoss]) -> float:
    """Bits per byte of all languages' texts together."""
    return sum(loss.bits_per_byte * loss.num_bytes for loss in losses) / sum(loss.num_bytes for loss in losses)


def _outcome(job: Job) -> str:
    if job.model_version:
        return f"{job.id} made {job.model_version}"
    if job.tokenizer_digest:
        return f"{job.id} made the tokenizer {job.tokenizer_digest}"
    if job.dataset:
        report = f"`anthesis artifacts download {job.report_digest} report.json`"
        return f"{job.id} made {job.dataset}; what became of the rows: {report}"
    if job.HasField("evaluate") and job.state == JOB_STATE_SUCCEEDED:
        version, suite = job.evaluate.version, job.evaluate.suite
        return f"{job.id} measured {version}; `anthesis evaluations list {version} --suite {suite}` shows it"
    if job.HasField("error"):
        parameter = f" ({job.error.parameter})" if job.error.parameter else ""
        return f"{job.id} failed: {job.error.code}{parameter}: {job.error.message}"
    return f"{job.id}: {enum_name(JobState, job.state)}"
