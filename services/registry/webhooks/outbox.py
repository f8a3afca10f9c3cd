"""From a job's change of state to the deliveries that tell of it, with nothing lost in between.

`note` is part of the transaction that changes the state; `write_deliveries` puts a delivery for each webhook that wants
to know in the place of what was noted, in one transaction too.
"""

import json
import secrets
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.registry.database import Database, insert_if_absent
from services.registry.job_specs import VersionSpec, spec_from_row
from services.registry.tables import (
    CANCELLED,
    FAILED,
    PAUSED,
    PENDING,
    RUNNING,
    SUCCEEDED,
    Job,
    StateChange,
    Webhook,
    WebhookDelivery,
)

EVENT_TYPES = {state: f"job.{state.lower()}" for state in (PENDING, RUNNING, PAUSED, SUCCEEDED, FAILED, CANCELLED)}
BATCH = 100


def note(session: AsyncSession, job: Job, sequence: int, state: str, now: datetime) -> None:
    """Remember the job's event of that number, which says that it entered `state`."""
    session.add(StateChange(job_id=job.id, sequence=sequence, state=state, time=now))


async def write_deliveries(database: Database, now: datetime) -> int:
    """Turn the oldest changes of state into deliveries; return how many changes there were."""
    oldest = select(StateChange).order_by(StateChange.id).limit(BATCH)
    async with database.read() as session:
        if not list(await session.scalars(oldest)):
            return 0
    async with database.write() as session:
        changes = list(await session.scalars(oldest.with_for_update(skip_locked=True)))
        for change in changes:
            await _deliver(session, change, now)
            await session.delete(change)
    return len(changes)


async def _deliver(session: AsyncSession, change: StateChange, now: datetime) -> None:
    job = await session.get_one(Job, change.job_id)
    event_type = EVENT_TYPES[change.state]
    webhooks = await session.scalars(select(Webhook).where(Webhook.created_by == job.created_by).order_by(Webhook.id))
    for webhook in webhooks:
        if webhook.event_types and event_type not in webhook.event_types:
            continue
        await insert_if_absent(
            session,
            WebhookDelivery,
            id=f"msg-{change.id:014x}-{secrets.token_hex(4)}",  # ids sort as the changes of state came
            webhook_id=webhook.id,
            job_id=job.id,
            sequence=change.sequence,
            event_type=event_type,
            body=_body(job, change, event_type),
            create_time=now,
            next_time=now,
        )


def _body(job: Job, change: StateChange, event_type: str) -> str:
    """JSON. The job may be further by now: what is said of its end belongs to the event of its end alone."""
    data = {
        "job_id": job.id,
        "kind": job.spec["kind"],
        "state": change.state,
        "sequence": change.sequence,
        "created_by": job.created_by,
    }
    spec = spec_from_row(job.spec)
    if isinstance(spec, VersionSpec):
        data["output_model"] = spec.output_model
    if change.state == SUCCEEDED:
        data["model_version"] = job.model_version
        data |= job.made or {}
    if change.state == FAILED:
        data["error"] = job.error
    return json.dumps({"type": event_type, "timestamp": change.time.isoformat(), "data": data}, ensure_ascii=False)
