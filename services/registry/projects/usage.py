"""What was used, by day, project, principal, model version and language, as gateways report it.

A batch has an id and counts once, however often it arrives. It is of the day (UTC) on which it arrives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.errors import InvalidArgument
from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.pages import Page, PageRequest, read_page
from services.registry.projects.quotas import day_of, tokens_on
from services.registry.projects.tables import Project, Usage, UsageBatch

BATCHES_KEPT = timedelta(days=2)  # a batch that is sent again after this counts again
MAX_BATCH_ID = 64
MAX_COUNT = 1 << 50


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageLine:
    project: str
    principal: str
    model_version: str
    language: str  # as the caller stated it; "": it did not
    requests: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Allowance:
    project: Project
    tokens_today: int


@dataclass(frozen=True, kw_only=True, slots=True)
class UsageQuery:
    """Empty: any. Days are "2026-11-29", both included."""

    start_day: str = ""
    end_day: str = ""
    project: str = ""

    def __post_init__(self) -> None:
        for name in ("start_day", "end_day"):
            if value := getattr(self, name):
                _check_day(name, value)


class UsageLog:
    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def report(self, batch_id: str, lines: Sequence[UsageLine], projects: Sequence[str]) -> list[Allowance]:
        """Add `lines` unless the batch is known; answer with those of `projects` that there are.

        Raises InvalidArgument, adding nothing.
        """
        _check_batch(batch_id, lines)
        now = self._clock()
        if lines:
            async with self._database.write() as session:
                if await insert_if_absent(session, UsageBatch, id=batch_id, time=now):
                    await session.execute(delete(UsageBatch).where(UsageBatch.time < now - BATCHES_KEPT))
                    for line in sorted(lines, key=repr):  # one order for all: two batches never wait for each other
                        await _add(session, line, day_of(now))
        async with self._database.read() as session:
            found = await session.scalars(select(Project).where(Project.name.in_(projects)).order_by(Project.name))
            return [Allowance(row, await tokens_on(session, row.name, day_of(now))) for row in found]

    async def list_usage(self, query: UsageQuery, page: PageRequest) -> Page[Usage]:
        """Newest first."""
        found = select(Usage)
        if query.start_day:
            found = found.where(Usage.day >= query.start_day)
        if query.end_day:
            found = found.where(Usage.day <= query.end_day)
        if query.project:
            found = found.where(Usage.project == query.project)
        async with self._database.read() as session:
            return await read_page(session, found, Usage.id, page, scope=f"usage {query}", newest_first=True)


async def _add(session: AsyncSession, line: UsageLine, day: str) -> None:
    key = {"day": day, "project": line.project, "principal": line.principal}
    key |= {"model_version": line.model_version, "language": line.language}
    counts = {name: getattr(line, name) for name in ("requests", "prompt_tokens", "completion_tokens")}
    if not await insert_if_absent(session, Usage, **key, **counts):
        more = {name: getattr(Usage, name) + count for name, count in counts.items()}
        await session.execute(update(Usage).filter_by(**key).values(**more))


def _check_batch(batch_id: str, lines: Sequence[UsageLine]) -> None:
    if lines and not 0 < len(batch_id) <= MAX_BATCH_ID:
        raise InvalidArgument(f"batch_id has {len(batch_id)} characters; give each batch one of 1 to {MAX_BATCH_ID}")
    for line in lines:
        for name in ("requests", "prompt_tokens", "completion_tokens"):
            if (value := getattr(line, name)) > MAX_COUNT:
                what = f"{name}={value} of {line.model_version[:200]!r}"
                raise InvalidArgument(f"{what} is out of range; report at most {MAX_COUNT}")


def _check_day(name: str, value: str) -> None:
    try:
        datetime.strptime(value, "%Y-%m-%d")
    except ValueError:
        raise InvalidArgument(f"{name}={value[:40]!r} is no day; write 2026-11-29") from None
