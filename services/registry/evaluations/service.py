"""Evaluations: recorded by who measured, or by the job that did; listed beside what was published."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Select, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.auth import current_project
from services.common.errors import FailedPrecondition, InvalidArgument
from services.registry import audit
from services.registry.aliases import resolve
from services.registry.database import Clock, Database, utc_now
from services.registry.dataset_names import check_datasets_exist
from services.registry.evaluations.documents import Measurement
from services.registry.evaluations.harness import LM_EVAL, metric_of
from services.registry.evaluations.published import PUBLISHED
from services.registry.evaluations.statistics import estimate
from services.registry.evaluations.suites import BENCHMARK, resolve_suite
from services.registry.licences.carried import read_ancestors
from services.registry.names import new_id
from services.registry.pages import Page, PageRequest, read_page
from services.registry.projects.artifacts import note_artifacts
from services.registry.tables import (
    Dataset,
    Evaluation,
    EvaluationResult,
    EvaluationSuite,
    Job,
    Model,
    ModelVersion,
)

JOB, REPORTED = "JOB", "REPORTED"
MAX_RESULTS, MAX_LANGUAGE, MAX_REFERENCE = 10_000, 100, 1000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, kw_only=True, slots=True)
class NewResult:
    language: str
    metric: str
    value: float
    n: int | None = None
    standard_error: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NewEvaluation:
    version: str  # anything `resolve` takes
    suite: str  # anything `resolve_suite` takes
    results: Sequence[NewResult]
    reference: str = ""
    created_by: str


@dataclass(frozen=True, slots=True)
class Found:
    """An evaluation with its results, by language and in the order of the suite's metrics."""

    evaluation: Evaluation
    suite: EvaluationSuite
    results: list[EvaluationResult]


async def add_measurement(
    session: AsyncSession, job: Job, version: ModelVersion, suite: str, measured: Measurement, now: datetime
) -> Evaluation:
    """Record what a job measured of `version`, within the transaction that ends the job."""
    evaluation = Evaluation(
        id=new_id("eval", now),
        model=version.model,
        version=version.name,
        project=current_project() or version.project,
        suite=suite,
        source=JOB,
        job_id=job.id,
        reference="",
        documents=measured.digest,
        created_by=job.created_by,
        create_time=now,
    )
    await note_artifacts(session, evaluation.project, {measured.digest: measured.size_bytes})
    results = [
        NewResult(language=language, metric=metric, **asdict(estimate(found)))
        for (language, metric), found in measured.documents.items()
    ]
    await _add(session, evaluation, results, now)
    return evaluation


async def _add(session: AsyncSession, evaluation: Evaluation, results: Sequence[NewResult], now: datetime) -> None:
    session.add(evaluation)
    await session.flush()
    session.add_all(EvaluationResult(evaluation=evaluation.id, **asdict(result)) for result in results)
    audit.record(session, now, f"evaluation/{evaluation.id}", f"{evaluation.version} by {evaluation.suite}")


async def check_never_trained_on(session: AsyncSession, version: ModelVersion, suite: EvaluationSuite) -> None:
    """Raise FailedPrecondition where the version, or one it comes from, has learnt texts of the suite."""
    for learnt in (version, *await read_ancestors(session, version)):
        check_held_out(suite, await check_datasets_exist(session, learnt.datasets), learnt.name)


def check_held_out(suite: EvaluationSuite, datasets: Sequence[Dataset], learner: str) -> None:
    """Raise FailedPrecondition where one of `datasets`, which `learner` is trained on, has rows of the suite's."""
    trained_on = {dataset.digest: dataset.name for dataset in datasets}
    for held_out in suite.datasets:
        if same := trained_on.get(held_out["digest"]):
            what = f"suite {suite.name} measures by dataset {held_out['name']!r}, and {learner} is trained on {same!r}"
            raise FailedPrecondition(f"{what}, which has the same rows; choose a suite of rows held out")


async def newest(session: AsyncSession, version: str, suite: str) -> Found | None:
    """The newest evaluation of a version (its own name) by a suite (its own name)."""
    query = (
        select(Evaluation)
        .where(Evaluation.version == version, Evaluation.suite == suite)
        .order_by(Evaluation.id.desc())
        .limit(1)
    )
    evaluation = await session.scalar(query)
    return (await _with_results(session, [evaluation]))[0] if evaluation else None


class Evaluations:
    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def record(self, new: NewEvaluation) -> Found:
        """Record results of a benchmark as reported. Raises InvalidArgument, NotFound."""
        _check_reference(new.reference)
        async with self._database.write() as session:
            version = await resolve(session, new.version)
            suite = await resolve_suite(session, new.suite)
            _check_results(suite, new.results)
            now = self._clock()
            evaluation = Evaluation(
                id=new_id("eval", now),
                model=version.model,
                version=version.name,
                project=current_project() or version.project,
                suite=suite.name,
                source=REPORTED,
                job_id=None,
                reference=new.reference,
                documents=None,
                created_by=new.created_by,
                create_time=now,
            )
            await _add(session, evaluation, new.results, now)
            await session.flush()
            return (await _with_results(session, [evaluation]))[0]

    async def list_evaluations(
        self, name: str, suite: str, page: PageRequest, *, beside_published: bool = False
    ) -> Page[Found]:
        """Published ones, then the newest; of a model, a version or an alias, or of all where `name` is empty.

        beside_published: also those published for the model and for the models that the version comes from.
        """
        async with self._database.read() as session:
            query = await _of(session, name, beside_published=beside_published)
            if suite:
                query = query.where(Evaluation.suite == (await resolve_suite(session, suite)).name)
            scope = f"evaluations {name} {suite} {beside_published}"
            rows = await read_page(session, query, Evaluation.id, page, scope=scope, newest_first=True)
            return Page(await _with_results(session, rows.rows), rows.next_token)


async def _of(session: AsyncSession, name: str, *, beside_published: bool) -> Select[Evaluation]:
    """The evaluations of what `name` means. Raises NotFound."""
    query = select(Evaluation)
    if not name:
        return query
    if await session.get(Model, name):
        own, models = Evaluation.model == name, {name}
        if beside_published and (version := await session.scalar(_newest_version(name))):
            models |= {ancestor.model for ancestor in await read_ancestors(session, version)}
    else:
        version = await resolve(session, name)
        own, models = Evaluation.version == version.name, {version.model}
        if beside_published:
            models |= {ancestor.model for ancestor in await read_ancestors(session, version)}
    published = (Evaluation.source == PUBLISHED) & Evaluation.model.in_(sorted(models))
    return query.where(or_(own, published)) if beside_published else query.where(own)


def _newest_version(model: str) -> Select[ModelVersion]:
    return select(ModelVersion).where(ModelVersion.model == model).order_by(ModelVersion.number.desc()).limit(1)


async def _with_results(session: AsyncSession, evaluations: Sequence[Evaluation]) -> list[Found]:
    ids = [evaluation.id for evaluation in evaluations]
    found: dict[str, list[EvaluationResult]] = defaultdict(list)
    for result in await session.scalars(select(EvaluationResult).where(EvaluationResult.evaluation.in_(ids))):
        found[result.evaluation].append(result)
    names = {evaluation.suite for evaluation in evaluations}
    rows = await session.scalars(select(EvaluationSuite).where(EvaluationSuite.name.in_(names)))
    suites = {suite.name: suite for suite in rows}
    return [_found(evaluation, suites[evaluation.suite], found[evaluation.id]) for evaluation in evaluations]


def _found(evaluation: Evaluation, suite: EvaluationSuite, results: list[EvaluationResult]) -> Found:
    order = {metric["name"]: number for number, metric in enumerate(suite.metrics)}

    def place(result: EvaluationResult) -> tuple[str, str, int]:
        metric = metric_of(suite, result.metric)
        return result.language, result.metric.removesuffix(metric), order[metric]

    return Found(evaluation, suite, sorted(results, key=place))


def _check_reference(reference: str) -> None:
    if len(reference) > MAX_REFERENCE:
        raise InvalidArgument(f"reference has {len(reference)} characters; use at most {MAX_REFERENCE}")
    if control := _CONTROL.search(reference):
        raise InvalidArgument(f"reference has {control[0]!r} at character {control.start() + 1}; write one plain line")


def _check_results(suite: EvaluationSuite, results: Sequence[NewResult]) -> None:
    if suite.kind != BENCHMARK:
        kind = "lm-evaluation-harness" if suite.kind == LM_EVAL else "bits per byte"
        what = f"suite {suite.name} is of {kind}, which a job measures"
        raise InvalidArgument(f"{what}: `anthesis evaluations run VERSION --suite {suite.name}`")
    if not 1 <= len(results) <= MAX_RESULTS:
        raise InvalidArgument(f"there are {len(results)} results; give 1 to {MAX_RESULTS}")
    metrics = [metric["name"] for metric in suite.metrics]
    seen = set()
    for result in results:
        _check_result(result, metrics)
        if (result.language, result.metric) in seen:
            raise InvalidArgument(f"{result.metric} of language {result.language!r} comes twice; give it once")
        seen.add((result.language, result.metric))


def _check_result(result: NewResult, metrics: Sequence[str]) -> None:
    if result.metric not in metrics:
        raise InvalidArgument(f"metric {result.metric[:100]!r} is not the suite's; choose {' or '.join(metrics)}")
    if len(result.language) > MAX_LANGUAGE or not result.language.isprintable():
        what = f"language {result.language[:MAX_LANGUAGE]!r} is not allowed"
        raise InvalidArgument(f"{what}; use at most {MAX_LANGUAGE} printable characters, such as 'fr'")
    what = f"{result.metric} of language {result.language!r}"
    if not math.isfinite(result.value):
        raise InvalidArgument(f"{what} is {result.value}, which is no number to compare; leave it out")
    if result.standard_error is not None and not 0 <= result.standard_error < math.inf:
        raise InvalidArgument(f"{what} has standard_error={result.standard_error}; give 0 or more, or leave it out")
    if result.n is not None and not 1 <= result.n < 1 << 63:
        raise InvalidArgument(f"{what} has n={result.n}; give the number of examples, from 1, or leave it out")
