import asyncio

import pytest

from services.common.errors import Aborted, FailedPrecondition, NotFound
from services.registry.leases import reconcile
from services.registry.tables import CANCELLED, PAUSED, PENDING, RUNNING
from tests.unit.registry.test_leases import empty_outbox, events_of, wakeups


async def states_of(registry, job):
    return [body["state"] for kind, body in await events_of(registry, job) if kind == "state"]


async def test_a_pending_job_is_paused_at_once_and_nobody_takes_it_until_it_is_resumed(registry):
    job = await registry.submit()
    assert (await registry.control.pause(job.id)).state == PAUSED
    await empty_outbox(registry)
    with pytest.raises(FailedPrecondition, match=rf"job {job.id} is paused; `anthesis jobs resume {job.id}`"):
        await registry.leases.acquire(job.id, "w1")
    registry.clock.advance(3600)
    assert await reconcile(registry.database, wake_again_s=10, clock=registry.clock) == []
    assert await wakeups(registry, job) == 0
    assert (await registry.control.resume(job.id)).state == PENDING
    assert await wakeups(registry, job) == 1
    await registry.leases.acquire(job.id, "w1")
    assert await states_of(registry, job) == [PENDING, PAUSED, PENDING, RUNNING]


async def test_a_running_job_is_paused_when_its_worker_gives_it_back(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "w1")
    assert (await registry.control.pause(job.id)).state == RUNNING
    assert (await registry.leases.renew(job.id, 1)).pause_requested
    await registry.leases.release(job.id, 1, "checkpoint of step 7")
    paused = await registry.jobs.get(job.id)
    assert (paused.state, paused.pause_requested, paused.lost_leases) == (PAUSED, False, 0)
    with pytest.raises(Aborted, match="stale"):
        await registry.leases.renew(job.id, 1)


async def test_a_running_job_whose_worker_dies_before_it_stops_is_paused_all_the_same(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "w1")
    await registry.control.pause(job.id)
    registry.clock.advance(15)
    assert await reconcile(registry.database, wake_again_s=10, clock=registry.clock) == [job.id]
    assert (await registry.jobs.get(job.id)).state == PAUSED


async def test_a_pause_that_is_taken_back_in_time_changes_nothing_and_too_late_lets_the_job_wait(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "w1")
    await registry.control.pause(job.id)
    assert not (await registry.control.resume(job.id)).pause_requested
    assert not (await registry.leases.renew(job.id, 1)).pause_requested
    await registry.leases.release(job.id, 1, "had stopped already")
    assert (await registry.jobs.get(job.id)).state == PENDING


async def test_a_paused_job_is_cancelled_at_once_and_a_cancelled_one_is_not_paused(registry):
    job = await registry.submit()
    await registry.control.pause(job.id)
    assert (await registry.jobs.cancel(job.id)).state == CANCELLED
    for change in (registry.control.pause, registry.control.resume):
        with pytest.raises(FailedPrecondition, match=job.id):
            await change(job.id)
        with pytest.raises(NotFound, match="no job 'job-0'"):
            await change("job-0")


async def test_a_job_that_is_to_be_paused_and_cancelled_is_cancelled(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "w1")
    await registry.control.pause(job.id)
    await registry.jobs.cancel(job.id)
    await registry.leases.release(job.id, 1, "told to stop")
    assert (await registry.jobs.get(job.id)).state == CANCELLED


async def test_of_many_who_pause_and_resume_at_once_each_changes_something_or_is_refused(registry):
    job = await registry.submit()
    changes = [registry.control.pause(job.id), registry.control.resume(job.id)]
    changes += [registry.control.pause(job.id) for _ in range(4)]
    answers = await asyncio.gather(*changes, return_exceptions=True)
    done = [answer for answer in answers if not isinstance(answer, FailedPrecondition)]
    assert not [answer for answer in done if isinstance(answer, BaseException)]
    assert len(await states_of(registry, job)) == 1 + len(done)


@pytest.mark.parametrize("wish", ["pause", "resume"])
async def test_what_is_refused_changes_nothing(registry, wish):
    job = await registry.submit()
    if wish == "pause":
        await registry.control.pause(job.id)
    before = await events_of(registry, job)
    with pytest.raises(FailedPrecondition, match="jobs resume" if wish == "pause" else "nobody has paused it"):
        await getattr(registry.control, wish)(job.id)
    assert await events_of(registry, job) == before
