"""Which PENDING job a free worker takes.

The one with the earliest queue time: when it was submitted, a day earlier for a HIGH job, a day later for a LOW one. So
urgent jobs go first, jobs of one priority in their order, and nothing starves: a LOW job is not passed by what is
submitted more than two days after it, nor a NORMAL one after a day.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.errors import InvalidArgument
from services.registry.job_events import wake
from services.registry.tables import PENDING, Job

PRIORITIES = {"LOW": timedelta(days=1), "NORMAL": timedelta(0), "HIGH": timedelta(days=-1)}
MAX_EXCEPT = 1000


def queue_time(priority: str, now: datetime) -> datetime:
    """Raises InvalidArgument for a priority that there is not."""
    if priority not in PRIORITIES:
        raise InvalidArgument(f"priority {priority[:40]!r} is not known; choose {', '.join(PRIORITIES)}")
    return now + PRIORITIES[priority]


async def next_in_turn(session: AsyncSession, job: Job, kinds: Sequence[str], but: Sequence[str], now: datetime) -> Job:
    """The PENDING job, locked, whose turn it is before that of `job`, which is then woken again; else `job`.

    kinds: of jobs that the worker can run. but: ids of jobs that it passes over. One that another worker is just taking
    is passed over, too.
    """
    if len(but) > MAX_EXCEPT:
        raise InvalidArgument(f"except_job_ids has {len(but)} ids; give at most {MAX_EXCEPT}")
    earlier = or_(Job.queue_time < job.queue_time, (Job.queue_time == job.queue_time) & (Job.id < job.id))
    named = [kind for kind in kinds if kind.isidentifier()]  # PostgreSQL compares no NUL
    query = (
        select(Job)
        .where(Job.state == PENDING, earlier, Job.spec["kind"].as_string().in_(named), Job.id.not_in(list(but)))
        .order_by(Job.queue_time, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    first = (await session.scalars(query)).one_or_none()
    if first is None:
        return job
    wake(session, job, now)  # the message that asked for it is used up
    return first
