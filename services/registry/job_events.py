"""What happened to a job, numbered within the job: what WatchJob streams."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.errors import NotFound
from services.registry.tables import ENDED, PENDING, RUNNING, Job, JobEvent, Wakeup
from services.registry.webhooks import outbox


async def lock_job(session: AsyncSession, job_id: str) -> Job:
    """The job's row, nobody else's to change until the transaction ends. Raises NotFound."""
    job = await session.get(Job, job_id, with_for_update=True, populate_existing=True)
    if job is None:
        raise no_job(job_id)
    return job


async def read_job(session: AsyncSession, job_id: str) -> Job:
    """Raises NotFound."""
    job = await session.get(Job, job_id)
    if job is None:
        raise no_job(job_id)
    return job


def no_job(job_id: str) -> NotFound:
    return NotFound(f"no job {job_id[:200]!r}; `anthesis jobs list` shows what there is")


async def read_events(session: AsyncSession, job_id: str, after: int, limit: int = 500) -> list[JobEvent]:
    query = (
        select(JobEvent)
        .where(JobEvent.job_id == job_id, JobEvent.sequence > after)
        .order_by(JobEvent.sequence)
        .limit(limit)
    )
    return list(await session.scalars(query))


def record(session: AsyncSession, job: Job, now: datetime, kind: str, body: Mapping[str, Any]) -> None:
    """Append an event. `job` must be locked: its counter numbers the events."""
    job.last_sequence += 1
    _append(session, job, job.last_sequence, now, kind, body)


def _append(session: AsyncSession, job: Job, sequence: int, now: datetime, kind: str, body: Mapping[str, Any]) -> None:
    session.add(JobEvent(job_id=job.id, sequence=sequence, time=now, kind=kind, body=dict(body)))
    if kind == "state":
        outbox.note(session, job, sequence, body["state"], now)


def record_first(session: AsyncSession, job: Job, now: datetime, said: Sequence[str]) -> None:
    """The first events of a job that was inserted just now, with their number as its last sequence: its state, and what
    is said."""
    _append(session, job, 1, now, "state", {"state": job.state})
    for sequence, message in enumerate(said, 2):
        _append(session, job, sequence, now, "message", {"message": message})


def say(session: AsyncSession, job: Job, now: datetime, message: str) -> None:
    record(session, job, now, "message", {"message": message})


def enter(session: AsyncSession, job: Job, state: str, now: datetime) -> None:
    """Move a locked job into `state`, with its event. PENDING comes with a wake-up, in the same transaction."""
    assert not job.ended, f"{job.id} has ended: {job.state}"
    job.state = state
    if state == PENDING:
        wake(session, job, now)
    if state == RUNNING:
        job.start_time = job.start_time or now
    if state != RUNNING:
        job.lease_expires, job.pause_requested = None, False
    if state in ENDED:
        job.end_time = now
    record(session, job, now, "state", {"state": state})


def wake(session: AsyncSession, job: Job, now: datetime) -> None:
    """Put a wake-up for the job into the outbox."""
    job.wake_time = now
    session.add(Wakeup(job_id=job.id, create_time=now))
