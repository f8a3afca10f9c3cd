"""Pages of a full registry: `python -m benchmarks.listing [--versions 10000] [--jobs 100000] [--calls 100]`.

Fills a database, SQLite and a PostgreSQL of its own (left out where none is installed), and asks a registry in a
process of its own for pages of 50 over gRPC, one call at a time, each with other values than the last. SQLite is as it
was written; PostgreSQL has vacuumed and analyzed its tables, as it does by itself after a while.
"""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import quantiles
from typing import Any

from anthesis import Settings
from anthesis.channel import open_channel
from anthesis.keys import to_timestamp
from anthesis.v1 import job_pb2, registry_pb2
from anthesis.v1.job_pb2_grpc import JobServiceStub
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub
from sqlalchemy import insert, text

from benchmarks.contestants import WORK
from benchmarks.figures import short, table
from benchmarks.machine import cpu_name
from benchmarks.registry_process import DATABASES, database_url, running_registry
from benchmarks.registry_rows import Rows
from services.registry.database import Database

GOAL_MS = 50.0  # of a page, 99 of 100
BATCH = 2000
MONTH = timedelta(days=30)
Ask = Callable[[random.Random], Any]  # -> a request


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    what: str  # "jobs, by text"
    ask: Ask


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    milliseconds: list[float]
    num_rows: int  # on the last page

    @property
    def p99(self) -> float:
        return quantiles(self.milliseconds, n=100, method="inclusive")[98]

    def __str__(self) -> str:
        return f"{short(quantiles(self.milliseconds, n=2, method='inclusive')[0])} / {short(self.p99)}"


def cases(rows: Rows) -> list[Case]:
    models, versions, jobs = (
        registry_pb2.ListModelsRequest,
        registry_pb2.ListModelVersionsRequest,
        job_pb2.ListJobsRequest,
    )

    def case(what: str, request: Any, *, within: timedelta | None = None, **fields: Any) -> Case:
        """Fields that are functions are asked for a value each time; `within` is a span somewhere in the year."""

        def ask(draw: random.Random) -> Any:
            values = {name: value(draw) if callable(value) else value for name, value in fields.items()}
            if within:
                start = rows.time(draw)
                values |= {"start_time": to_timestamp(start), "end_time": to_timestamp(start + within)}
            return request(**values)

        return Case(what=what, ask=ask)

    return [
        case("models", models),
        case("models, newest", models, order=registry_pb2.LIST_ORDER_NEWEST),
        case("models, text of one", models, text=rows.model),
        case("models, text of none", models, text="nowhere"),
        case("models, language and tag", models, language=rows.language, tag=rows.tag),
        case("versions", versions),
        case("versions of a model", versions, model=rows.model),
        case("versions, text of many", versions, text="garden"),
        case("versions, text of one", versions, text=rows.model),
        case("versions, text of none", versions, text="nowhere"),
        case("versions, tag", versions, tag=rows.tag),
        case("versions, rare licence", versions, licence="mit"),
        case("versions, language", versions, language=rows.language),
        case("versions, parent", versions, parent=rows.version),
        case("versions, data set", versions, dataset=rows.dataset),
        case("versions, principal", versions, created_by=rows.principal),
        case("versions, a month", versions, within=MONTH),
        case("versions, deleted too, text of none", versions, show_deleted=True, text="nowhere"),
        case("jobs", jobs),
        case("jobs, succeeded", jobs, state=job_pb2.JOB_STATE_SUCCEEDED),
        case("jobs, failed", jobs, state=job_pb2.JOB_STATE_FAILED),
        case("jobs, running", jobs, state=job_pb2.JOB_STATE_RUNNING),
        case("jobs, text of many", jobs, text="garden"),
        case("jobs, text of one", jobs, text=rows.model),
        case("jobs, text of none", jobs, text="nowhere"),
        case("jobs, running, text of none", jobs, state=job_pb2.JOB_STATE_RUNNING, text="nowhere"),
        case("jobs, principal, text of none", jobs, created_by=rows.principal, text="nowhere"),
        case("jobs, model", jobs, output_model=rows.model),
        case("jobs, base", jobs, base=rows.version),
        case("jobs, data set", jobs, dataset=rows.dataset),
        case("jobs, principal", jobs, created_by=rows.principal),
        case("jobs, a month", jobs, within=MONTH),
        case("jobs, a month, failed", jobs, within=MONTH, state=job_pb2.JOB_STATE_FAILED),
    ]


async def fill(url: str, rows: Rows) -> None:
    database = Database(url)
    for kind in rows.tables():
        batch: list[dict[str, Any]] = []
        for row in kind.rows:
            batch.append(row)
            if len(batch) == BATCH:
                await _insert(database, kind.table, batch)
                batch = []
        await _insert(database, kind.table, batch)
    if database.engine.dialect.name == "postgresql":
        engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            await connection.execute(text("VACUUM ANALYZE"))
    await database.close()


async def _insert(database: Database, rows_of: Any, batch: Sequence[dict[str, Any]]) -> None:
    if batch:
        async with database.write() as session:
            await session.execute(insert(rows_of), list(batch))


def measure(settings: Settings, rows: Rows, num_calls: int) -> dict[str, Measured]:
    found = {}
    with open_channel(settings.registry_address, settings.api_key) as channel:
        registry, jobs = RegistryServiceStub(channel), JobServiceStub(channel)
        calls: dict[type[Any], Callable[[Any], Any]] = {
            registry_pb2.ListModelsRequest: registry.ListModels,
            registry_pb2.ListModelVersionsRequest: registry.ListModelVersions,
            job_pb2.ListJobsRequest: jobs.ListJobs,
        }
        for case in cases(rows):
            draw = random.Random(0)
            took = []
            for _ in range(num_calls):
                request = case.ask(draw)
                start = time.perf_counter()
                response = calls[type(request)](request)
                took.append(1000 * (time.perf_counter() - start))
            listed = next(iter(response.ListFields()), (None, ()))[1]
            found[case.what] = Measured(milliseconds=took, num_rows=len(listed))
            print(f"{case.what}: {found[case.what]}", file=sys.stderr)
    return found


def run(kind: str, arguments: argparse.Namespace) -> dict[str, Measured]:
    """Raises FileNotFoundError where there is no such database."""
    folder = Path(tempfile.mkdtemp(prefix="an-", dir=arguments.work))
    rows = Rows(num_versions=arguments.versions, num_jobs=arguments.jobs)
    try:
        with database_url(kind, folder) as url, running_registry(folder, url) as settings:
            start = time.perf_counter()
            asyncio.run(fill(url, rows))
            print(f"{kind}: filled in {time.perf_counter() - start:.0f} s", file=sys.stderr)
            return measure(settings, rows, arguments.calls)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def report(found: dict[str, dict[str, Measured]]) -> tuple[str, float]:
    """The table, and the greatest p99 in ms."""
    first = next(iter(found.values()))
    lines = [[what, str(first[what].num_rows), *(str(measured[what]) for measured in found.values())] for what in first]
    header = ["asked for", "rows", *(f"{kind} ms, p50 / p99" for kind in found)]
    return table(header, lines), max(one.p99 for measured in found.values() for one in measured.values())


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.listing", description=__doc__.split("\n")[0])
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=100, help="of each kind")
    parser.add_argument("--work", type=Path, default=WORK)
    return parser


def main() -> int:
    arguments = parser().parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = {}
    for kind in DATABASES:
        try:
            found[kind] = run(kind, arguments)
        except FileNotFoundError as error:
            print(f"{kind} is left out: {error}", file=sys.stderr)
    shown, worst = report(found)
    print(
        f"{cpu_name()}; {arguments.versions} versions, {arguments.jobs} jobs, {arguments.calls} calls each\n\n{shown}"
    )
    print(f"\ngoal: a page under {GOAL_MS:.0f} ms: {short(worst)} ms at most, ", end="")
    print("reached" if worst < GOAL_MS else "MISSED")
    return 0 if worst < GOAL_MS else 2


if __name__ == "__main__":
    sys.exit(main())
