import asyncio

import pytest

from services.common.errors import InvalidArgument
from services.registry.tables import PENDING
from tests.unit.registry.test_leases import empty_outbox, wakeups

DAY_S = 24 * 3600
KINDS = ("pretrain", "fine_tune")


async def take(registry, job, but=()):
    """The id of the job that a worker gets that was woken for `job`."""
    return (await registry.leases.acquire(job.id, "w1", kinds=KINDS, but=but)).job.id


async def test_a_free_worker_takes_urgent_jobs_first_and_equals_in_their_order(registry):
    jobs = []
    for priority in ("LOW", "NORMAL", "HIGH", "NORMAL", "HIGH"):
        jobs.append(await registry.submit(priority=priority))
        registry.clock.advance(1)
    last = jobs[0]  # the wake-up of the least urgent comes first, again and again
    taken = [await take(registry, last) for _ in range(5)]
    assert [[job.id for job in jobs].index(job_id) for job_id in taken] == [2, 4, 1, 3, 0]


async def test_the_job_that_had_to_wait_is_woken_again(registry):
    low, high = await registry.submit(priority="LOW"), await registry.submit(priority="HIGH")
    await empty_outbox(registry)
    assert await take(registry, low) == high.id
    assert (await wakeups(registry, low), await wakeups(registry, high)) == (1, 0)
    assert (await registry.jobs.get(low.id)).state == PENDING


async def test_nothing_starves_as_a_level_is_worth_a_day(registry):
    low = await registry.submit(priority="LOW")
    registry.clock.advance(2 * DAY_S - 1)
    high = await registry.submit(priority="HIGH")
    registry.clock.advance(2)
    later = await registry.submit(priority="HIGH")
    assert [await take(registry, later) for _ in range(3)] == [high.id, low.id, later.id]


async def test_jobs_that_a_worker_leaves_alone_are_passed_over(registry):
    normal, high = await registry.submit(), await registry.submit(priority="HIGH")
    assert await take(registry, normal, but=[high.id]) == normal.id
    with pytest.raises(InvalidArgument, match="except_job_ids has 1001 ids; give at most 1000"):
        await take(registry, high, but=["job"] * 1001)


async def test_a_worker_gets_no_job_of_a_kind_that_it_cannot_run(registry):
    tune = await registry.submit(spec=await registry.fine_tune_spec(), priority="HIGH")
    job = await registry.submit()
    assert (await registry.leases.acquire(job.id, "w1", kinds=["pretrain"])).job.id == job.id
    assert (await registry.jobs.get(tune.id)).state == PENDING


async def test_a_worker_that_asks_for_one_job_alone_gets_that(registry):
    normal, _ = await registry.submit(), await registry.submit(priority="HIGH")
    assert (await registry.leases.acquire(normal.id, "w1")).job.id == normal.id


async def test_of_many_workers_woken_for_one_job_each_gets_another(registry):
    jobs = [await registry.submit(priority=priority) for priority in ("HIGH", "HIGH", "NORMAL", "LOW")]
    asked = [registry.leases.acquire(job.id, f"w{i}", kinds=KINDS) for i, job in enumerate(jobs)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    taken = [answer.job.id for answer in answers if not isinstance(answer, BaseException)]
    assert len(set(taken)) == len(taken) >= 2


async def test_a_priority_that_there_is_not_is_refused(registry):
    with pytest.raises(InvalidArgument, match="priority 'URGENT' is not known; choose LOW, NORMAL, HIGH"):
        await registry.submit(priority="URGENT")
