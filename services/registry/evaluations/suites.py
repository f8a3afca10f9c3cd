"""Suites: what versions are measured by. A suite never changes; what says something else is its name's next version."""

import asyncio
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.artifacts import ArtifactStore
from services.common.auth import current_project
from services.common.errors import AlreadyExists, InvalidArgument, NotFound
from services.registry import audit
from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.dataset_names import check_datasets_exist
from services.registry.evaluations import harness
from services.registry.evaluations.harness import LM_EVAL, HarnessTask
from services.registry.job_specs import Range
from services.registry.names import check_name
from services.registry.pages import Page, PageRequest, read_page
from services.registry.projects.scope import check_refers
from services.registry.projects.session import check_usable
from services.registry.references import keep
from services.registry.tables import Dataset, EvaluationSuite

BITS_PER_BYTE, BENCHMARK = "BITS_PER_BYTE", "BENCHMARK"
FORMATS = ("TEXT", "MULTITASK")  # rows whose texts can be scored
DEFAULT_LENGTH, LENGTHS = 512, Range("[16, 65536]")  # tokens
MAX_TEXT, MAX_DATASETS, MAX_METRICS = 1000, 100, 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    name: str
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class NewSuite:
    family: str
    kind: str  # BITS_PER_BYTE, BENCHMARK or LM_EVAL
    description: str = ""
    datasets: list[str] = field(default_factory=list)  # BITS_PER_BYTE
    sequence_length: int = 0  # BITS_PER_BYTE; 0: DEFAULT_LENGTH
    task: str = ""  # BENCHMARK
    metrics: list[Metric] = field(default_factory=list)  # BENCHMARK, LM_EVAL
    tasks: list[HarnessTask] = field(default_factory=list)  # LM_EVAL
    num_fewshot: int = 0  # LM_EVAL
    limit: int = 0  # LM_EVAL; 0: none
    created_by: str


async def resolve_suite(session: AsyncSession, name: str) -> EvaluationSuite:
    """The suite called "<family>@<number>", or the newest of a family. Raises NotFound."""
    newest = (
        select(EvaluationSuite)
        .where((EvaluationSuite.name == name) | (EvaluationSuite.family == name))
        .order_by(EvaluationSuite.number.desc())
        .limit(1)
    )
    suite = await session.scalar(newest)
    if suite is None:
        raise NotFound(f"no suite {name[:200]!r}; `anthesis evaluations suites` shows what there is")
    return suite


async def measurable_suite(session: AsyncSession, name: str) -> EvaluationSuite:
    """The same, for a job to measure by. Raises InvalidArgument as well."""
    suite = await resolve_suite(session, name)
    if suite.kind == BENCHMARK:
        what = f"suite {suite.name} is the benchmark {suite.task}, which has a program of its own"
        remedy = "name a suite of bits per byte, or record its results: `anthesis evaluations record`"
        raise InvalidArgument(f"{what}; {remedy}")
    return suite


async def text_suite(session: AsyncSession, name: str) -> EvaluationSuite:
    """The same, of bits per byte: what measures a version that nobody serves. Raises InvalidArgument as well."""
    suite = await measurable_suite(session, name)
    if suite.kind != BITS_PER_BYTE:
        what = f"suite {suite.name} asks a version that is served; here, name a suite of bits per byte"
        raise InvalidArgument(f"{what}, and run this one behind a deployment: `anthesis evaluations run`")
    return suite


class Suites:
    def __init__(self, database: Database, artifacts: ArtifactStore, clock: Clock = utc_now) -> None:
        self._database = database
        self._artifacts = artifacts
        self._clock = clock

    async def create(self, new: NewSuite) -> EvaluationSuite:
        """The family's next version; its newest where that says the same. Raises InvalidArgument, NotFound,
        AlreadyExists for a family that came with this release.
        """
        check_name("suite", new.family)
        if new.kind == LM_EVAL:
            await self._check_tasks(new)
        async with self._database.write() as session:
            datasets = await _held_out(session, new)
            content = _content(new, datasets)
            await keep(session, self._artifacts, [dataset.digest for dataset in datasets])
            while True:
                newest = await _newest(session, new.family)
                if newest and newest.published:
                    raise AlreadyExists(f"suite {new.family!r} came with this release; choose another name")
                if newest and all(getattr(newest, name) == value for name, value in content.items()):
                    return newest
                named = await _next(session, new.family, newest, datasets)
                made = {"created_by": new.created_by, "create_time": self._clock(), "published": False}
                if await insert_if_absent(session, EvaluationSuite, **named, **content, **made):
                    audit.record(session, self._clock(), f"suite/{named['name']}", _subject(new))
                    return await session.get_one(EvaluationSuite, named["name"])

    async def _check_tasks(self, new: NewSuite) -> None:
        harness.check_tasks(new.tasks, new.num_fewshot, new.limit)
        async with self._database.read() as session:
            found = dict(zip(_names(new), await check_datasets_exist(session, _names(new)), strict=True))
        for task in new.tasks:
            if task.dataset:
                await asyncio.to_thread(harness.check_rows, self._artifacts, task, found[task.dataset])

    async def get(self, name: str) -> EvaluationSuite:
        """See `resolve_suite`."""
        async with self._database.read() as session:
            return await resolve_suite(session, name)

    async def list_suites(self, page: PageRequest) -> Page[EvaluationSuite]:
        async with self._database.read() as session:
            return await read_page(session, select(EvaluationSuite), EvaluationSuite.name, page, scope="suites")


async def _newest(session: AsyncSession, family: str) -> EvaluationSuite | None:
    number = select(func.max(EvaluationSuite.number)).where(EvaluationSuite.family == family).scalar_subquery()
    query = select(EvaluationSuite).where(EvaluationSuite.family == family, EvaluationSuite.number == number)
    return (await session.scalars(query)).one_or_none()


async def _next(
    session: AsyncSession, family: str, newest: EvaluationSuite | None, datasets: list[Dataset]
) -> dict[str, Any]:
    """What the family's next version is called, and whose it is."""
    await check_usable(session, (EvaluationSuite, f"{family}@1"))
    number, project = (newest.number + 1, newest.project) if newest else (1, current_project())
    for dataset in datasets:
        check_refers("suite", family, project, dataset.project)
    return {"name": f"{family}@{number}", "family": family, "number": number, "project": project}


def _content(new: NewSuite, datasets: list[Dataset]) -> dict[str, Any]:
    """What makes a suite another one. Raises InvalidArgument."""
    if len(new.description) > MAX_TEXT or len(new.task) > MAX_TEXT:
        raise InvalidArgument(f"description and task may have {MAX_TEXT} characters each; shorten them")
    content: dict[str, Any] = {"kind": new.kind, "description": new.description, "task": new.task}
    rows = [{name: getattr(row, name) for name in ("name", "format", "digest", "languages")} for row in datasets]
    content |= {"datasets": rows, "sequence_length": 0, "harness": None}
    if new.kind not in (BITS_PER_BYTE, BENCHMARK, LM_EVAL):
        raise InvalidArgument("the suite has no kind; set BITS_PER_BYTE, BENCHMARK or LM_EVAL")
    if new.kind != LM_EVAL and (new.tasks or new.num_fewshot or new.limit):
        raise InvalidArgument("tasks, num_fewshot and limit are for LM_EVAL; leave them out, or choose that kind")
    if new.kind != BITS_PER_BYTE and (new.datasets or new.sequence_length):
        raise InvalidArgument("datasets and sequence_length are for BITS_PER_BYTE; leave them out, or choose that kind")
    if new.kind == BENCHMARK:
        _check_benchmark(new)
        return content | {"metrics": [asdict(metric) for metric in new.metrics]}
    if new.kind == BITS_PER_BYTE:
        return content | _bits_per_byte(new)
    names = dict(zip(_names(new), (dataset.name for dataset in datasets), strict=True))
    kept = harness.as_kept(new.tasks, new.num_fewshot, new.limit, names)
    return content | {"metrics": _harness_metrics(new), "harness": kept}


def _bits_per_byte(new: NewSuite) -> dict[str, Any]:
    if new.task or new.metrics:
        raise InvalidArgument("task and metrics are a BENCHMARK's; leave them out, or choose that kind")
    length = new.sequence_length or DEFAULT_LENGTH
    if length not in LENGTHS:
        raise InvalidArgument(f"sequence_length={length} is out of range; choose a value in {LENGTHS.text}")
    metric = Metric(name="bits_per_byte", higher_is_better=False)
    return {"sequence_length": length, "metrics": [asdict(metric)]}


def _harness_metrics(new: NewSuite) -> list[dict[str, Any]]:
    """The suite's, as they are kept; the usual ones where it names none."""
    if new.task:
        raise InvalidArgument(f"task={new.task[:100]!r} is a BENCHMARK's; name it among tasks")
    if not new.metrics:
        return [{"name": name, "higher_is_better": better} for name, better in harness.DEFAULT_METRICS.items()]
    names = [metric.name for metric in new.metrics]
    if not len(set(names)) == len(names) <= MAX_METRICS or not all(
        _is_plain(name) and "/" not in name for name in names
    ):
        what = f"metrics {', '.join(names)[:200]!r}"
        raise InvalidArgument(f"{what}: name at most {MAX_METRICS}, each once and without '/', such as 'acc'")
    return [asdict(metric) for metric in new.metrics]


def _check_benchmark(new: NewSuite) -> None:
    names = [metric.name for metric in new.metrics]
    if not new.task or not 1 <= len(set(names)) == len(names) <= MAX_METRICS or not all(map(_is_plain, names)):
        what = f"task={new.task[:100]!r} with metrics {', '.join(names)[:200]!r}"
        needs = f"a BENCHMARK has a task and 1 to {MAX_METRICS} metrics, each with a name of its own"
        raise InvalidArgument(f"{what}: {needs}")


def _is_plain(name: str) -> bool:
    return 0 < len(name) <= MAX_TEXT and name.isprintable()


def _names(new: NewSuite) -> list[str]:
    """Of the datasets whose rows it asks."""
    if new.kind == LM_EVAL:
        return list(dict.fromkeys(task.dataset for task in new.tasks if task.dataset))
    return new.datasets if new.kind == BITS_PER_BYTE else []


def _subject(new: NewSuite) -> str:
    return new.task or ", ".join([*new.datasets, *(task.name for task in new.tasks)])[:MAX_TEXT]


async def _held_out(session: AsyncSession, new: NewSuite) -> list[Dataset]:
    names = _names(new)
    if new.kind == BITS_PER_BYTE and not 1 <= len(names) <= MAX_DATASETS:
        raise InvalidArgument(f"the suite names {len(names)} datasets; name 1 to {MAX_DATASETS} that are held out")
    datasets = await check_datasets_exist(session, names)
    for dataset in datasets:
        if new.kind == BITS_PER_BYTE and dataset.format not in FORMATS:
            what = f"dataset {dataset.name!r} is {dataset.format}"
            raise InvalidArgument(f"{what}; bits per byte are of {' or '.join(FORMATS)} rows")
    return datasets
