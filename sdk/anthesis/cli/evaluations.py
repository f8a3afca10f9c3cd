"""`anthesis evaluations`."""

import json
from itertools import islice
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message

from anthesis import Client, EvaluateSpec
from anthesis.cli.job_progress import follow
from anthesis.cli.output import MAX_COUNT, Json, enum_name, print_json, print_table, show_time
from anthesis.v1.evaluation_pb2 import (
    SUITE_KIND_LM_EVAL,
    Evaluation,
    EvaluationDifference,
    EvaluationResult,
    EvaluationSource,
    LmEvalTask,
    Metric,
    SignificanceTest,
    Suite,
    SuiteKind,
)
from anthesis.v1.job_pb2 import JobState

group = typer.Typer(help="How good versions are, language by language.", no_args_is_help=True)
Version = Annotated[str, typer.Argument(help="A version, an alias or a model.")]
SuiteName = Annotated[str, typer.Option("--suite", help='"<family>@<version>", or a family: its newest version.')]
M = TypeVar("M", bound=Message)
Description = Annotated[str, typer.Option(help="What it is, in a line.")]


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="evaluations")


@group.command()
def suites(as_json: Json = False) -> None:
    """Every suite by which versions are measured."""
    with Client() as client:
        found = client.evaluations.suites()
    if as_json:
        print_json(found)
    else:
        print_table(("SUITE", "KIND", "OF", "METRICS", "DESCRIPTION"), map(_suite_row, found))


@group.command()
def create_suite(
    family: Annotated[str, typer.Argument(help="Its name without a version.")],
    dataset: Annotated[list[str], typer.Option("--dataset", help="Held out, by name; may be repeated.")],
    sequence_length: Annotated[int, typer.Option(min=0, max=MAX_COUNT, help="Tokens a text is cut into; 0: 512.")] = 0,
    description: Description = "",
    as_json: Json = False,
) -> None:
    """Make the next version of a suite of bits per byte; the newest one again where it says the same."""
    with Client() as client:
        made = client.evaluations.create_suite(
            family, dataset, sequence_length=sequence_length, description=description
        )
    _print_suite(made, as_json)


@group.command()
def create_benchmark(
    family: Annotated[str, typer.Argument(help="Its name without a version.")],
    task: Annotated[str, typer.Option(help="What it is called by who made it.")],
    metric: Annotated[list[str] | None, typer.Option(help="Higher is better; may be repeated.")] = None,
    lower_metric: Annotated[list[str] | None, typer.Option(help="The same; lower is better.")] = None,
    description: Description = "",
    as_json: Json = False,
) -> None:
    """Make the next version of a suite that a program of its own measures; `record` takes its results."""
    metrics = _metrics(metric, lower_metric)
    with Client() as client:
        made = client.evaluations.create_benchmark(family, task=task, metrics=metrics, description=description)
    _print_suite(made, as_json)


@group.command()
def create_lm_eval(
    family: Annotated[str, typer.Argument(help="Its name without a version.")],
    task: Annotated[
        list[str] | None, typer.Option(help='One that lm-evaluation-harness has, "xcopa_et"; may be repeated.')
    ] = None,
    tasks: Annotated[
        Path | None,
        typer.Option(help='JSON of tasks made of rows: [{"name": "nli", "dataset": "xnli", "jinja": "… ||| …"}, …].'),
    ] = None,
    num_fewshot: Annotated[int, typer.Option(min=0, max=MAX_COUNT, help="Answered examples before a question.")] = 0,
    limit: Annotated[int, typer.Option(min=0, max=MAX_COUNT, help="Questions of each task; 0: all.")] = 0,
    metric: Annotated[list[str] | None, typer.Option(help="Kept; higher is better; may be repeated.")] = None,
    lower_metric: Annotated[list[str] | None, typer.Option(help="The same; lower is better.")] = None,
    description: Description = "",
    as_json: Json = False,
) -> None:
    """Make the next version of a suite of lm-evaluation-harness, which `run` puts to a version that is served."""
    asked = [LmEvalTask(name=name) for name in task or []] + (read_tasks(tasks) if tasks else [])
    with Client() as client:
        made = client.evaluations.create_lm_eval(
            family,
            asked,
            metrics=_metrics(metric, lower_metric),
            num_fewshot=num_fewshot,
            limit=limit,
            description=description,
        )
    _print_suite(made, as_json)


def _metrics(higher: list[str] | None, lower: list[str] | None) -> list[Metric]:
    better = [Metric(name=name, higher_is_better=True) for name in higher or []]
    return better + [Metric(name=name, higher_is_better=False) for name in lower or []]


@group.command()
def run(
    version: Version,
    suite: SuiteName,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    as_json: Json = False,
) -> None:
    """Submit a job that measures a version by a suite: its bits per byte, or what it answers."""
    with Client() as client:
        job = client.jobs.create(EvaluateSpec(version=version, suite=suite))
        if watch:
            follow(client, job.id, as_json)
        elif as_json:
            print_json(job)
        else:
            print(f"{job.id}: {enum_name(JobState, job.state)}; `anthesis jobs watch {job.id}` follows it")


@group.command()
def record(
    version: Version,
    suite: SuiteName,
    results: Annotated[Path, typer.Option(help='JSON: [{"language": "fr", "metric": "acc", "value": 0.61}, …].')],
    reference: Annotated[str, typer.Option(help="How it was measured: a line.")] = "",
    as_json: Json = False,
) -> None:
    """Record a benchmark's results that were measured elsewhere; they are marked as reported by you."""
    with Client() as client:
        made = client.evaluations.record(version, suite, read_results(results), reference=reference)
    _print_evaluations([made], as_json)


@group.command("list")
def list_evaluations(
    name: Annotated[str, typer.Argument(help="A model, a version or an alias; none: all.")] = "",
    suite: Annotated[str, typer.Option(help="Only by this suite.")] = "",
    published: Annotated[
        bool, typer.Option(help="Show those published for the model, and for those it comes from, too.")
    ] = True,
    limit: Annotated[int, typer.Option(min=1, help="How many evaluations at most.")] = 50,
    as_json: Json = False,
) -> None:
    """Results by language: what was published first, then the newest."""
    with Client() as client:
        found = list(islice(client.evaluations.list(name, suite=suite, beside_published=published), limit))
    _print_evaluations(found, as_json)


@group.command()
def compare(version: Version, base: Version, suite: SuiteName, as_json: Json = False) -> None:
    """A version against another: differences by language, and whether they are more than chance.

    P is two-sided; HOLM is the same corrected for the number of comparisons, which is what to go by.
    """
    with Client() as client:
        compared = client.evaluations.compare(version, base, suite)
    if as_json:
        print_json(compared)
        return
    print(f"{compared.version} against {compared.base}, by {compared.suite}")
    columns = ("LANGUAGE", "METRIC", compared.base, compared.version, "DIFFERENCE", "STDERR", "P", "HOLM", "TEST")
    print_table(columns, map(_difference_row, compared.differences))


def read_results(path: Path) -> list[EvaluationResult]:
    """Raises ValueError for a file that has none."""
    shown = '[{"language": "fr", "metric": "acc", "value": 0.61, "n": 500, "standard_error": 0.02}]'
    return _read(path, EvaluationResult, "results", shown)


def read_tasks(path: Path) -> list[LmEvalTask]:
    """Raises ValueError for a file that has none."""
    shown = '[{"name": "nli", "dataset": "xnli", "jinja": "{{premise}} ||| {{label}}", "answer_choices": "no ||| yes"}]'
    return _read(path, LmEvalTask, "tasks", shown)


def _read(path: Path, kind: type[M], what: str, shown: str) -> list[M]:
    try:
        rows = json.loads(path.read_bytes())
        if not isinstance(rows, list):
            raise ValueError("it is no list")
        return [ParseDict(row, kind()) for row in rows]
    except (ValueError, ParseError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} has no {what}: {error}; write {shown}") from None


def _print_suite(suite: Suite, as_json: bool) -> None:
    if as_json:
        print_json(suite)
    else:
        print(f"{suite.name}: {_subject(suite)}")


def _subject(suite: Suite) -> str:
    if suite.task:
        return suite.task
    if suite.kind == SUITE_KIND_LM_EVAL:
        return ", ".join(f"{task.name} ({task.dataset})" if task.dataset else task.name for task in suite.tasks)
    return f"{', '.join(dataset.name for dataset in suite.datasets)} in windows of {suite.sequence_length} tokens"


def _suite_row(suite: Suite) -> tuple[object, ...]:
    kind = enum_name(SuiteKind, suite.kind).lower() + (" (published)" if suite.published else "")
    return suite.name, kind, _subject(suite), ", ".join(metric.name for metric in suite.metrics), suite.description


def _print_evaluations(evaluations: list[Evaluation], as_json: bool) -> None:
    if as_json:
        print_json(evaluations)
        return
    columns = ("OF", "SUITE", "LANGUAGE", "METRIC", "VALUE", "STDERR", "N", "SOURCE", "TIME")
    print_table(columns, [_result_row(found, result) for found in evaluations for result in found.results])


def _result_row(found: Evaluation, result: EvaluationResult) -> tuple[object, ...]:
    error = f"{result.standard_error:.4f}" if result.HasField("standard_error") else "-"
    n = result.n if result.HasField("n") else "-"
    of, language = found.version or found.model, result.language or "-"
    return of, found.suite, language, result.metric, f"{result.value:.6g}", error, n, _source(found), _time(found)


def _source(found: Evaluation) -> str:
    match enum_name(EvaluationSource, found.source):
        case "JOB":
            return found.job_id
        case "PUBLISHED":
            return f"published: {found.reference}"
        case _:
            return f"reported by {found.created_by}" + (f": {found.reference}" if found.reference else "")


def _time(found: Evaluation) -> str:
    return show_time(found.create_time) if found.version else "-"


def _difference_row(found: EvaluationDifference) -> tuple[object, ...]:
    known = found.HasField("standard_error")
    error, p, holm = (
        (f"{found.standard_error:.4f}", f"{found.p_value:.2g}", f"{found.p_value_holm:.2g}") if known else ("-",) * 3
    )
    better = (found.difference > 0) == found.higher_is_better and found.difference
    change = f"{found.difference:+.4f}" + (" better" if better else " worse" if found.difference else "")
    test = enum_name(SignificanceTest, found.test).lower() if known else "-"
    values = (f"{found.base_value:.6g}", f"{found.value:.6g}")
    return found.language or "-", found.metric, *values, change, error, p, holm, test
