import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import delete, select

from services.common.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from services.registry.job_events import read_events
from services.registry.leases import Failed, Stopped, Succeeded, reconcile
from services.registry.pages import PageRequest
from services.registry.tables import CANCELLED, FAILED, PENDING, RUNNING, SUCCEEDED, Wakeup
from tests.support.registry_data import safetensors_bytes, store_checkpoint

PROGRESS = {
    "step": 3,
    "total_steps": 10,
    "loss": 2.5,
    "learning_rate": 1e-3,
    "grad_norm": 1.0,
    "tokens_per_second": 900.0,
    "tokens_seen": 1536,
    "seconds_left": 12.0,
    "time": "2026-01-01T00:00:00+00:00",
}


async def events_of(registry, job):
    async with registry.database.read() as session:
        return [(event.kind, event.body) for event in await read_events(session, job.id, after=0)]


async def wakeups(registry, job):
    async with registry.database.read() as session:
        return len(list(await session.scalars(select(Wakeup).where(Wakeup.job_id == job.id))))


async def empty_outbox(registry):
    async with registry.database.write() as session:
        await session.execute(delete(Wakeup))


async def test_a_lease_carries_everything_that_the_job_refers_to(registry):
    job = await registry.submit(spec=await registry.fine_tune_spec(), deploy_alias="bud")
    acquired = await registry.leases.acquire(job.id, "worker-1")
    assert (acquired.job.state, acquired.job.fencing_token, acquired.ttl_s) == (RUNNING, 1, 15)
    assert acquired.base.name == "seedling@1"
    assert [dataset.name for dataset in acquired.datasets] == ["tasks@1"]
    assert acquired.job.deploy_alias == "bud"


async def test_a_held_lease_is_not_given_to_another_worker(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "worker-1")
    registry.clock.advance(14.9)
    with pytest.raises(Aborted, match="held by worker-1 under token 1"):
        await registry.leases.acquire(job.id, "worker-2")


async def test_of_many_workers_that_ask_at_once_one_gets_the_lease(registry):
    job = await registry.submit()
    asked = [registry.leases.acquire(job.id, f"worker-{i}") for i in range(8)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(answer, Aborted) for answer in answers) == 7
    assert (await registry.jobs.get(job.id)).fencing_token == 1


async def test_a_lease_begins_when_its_turn_to_write_has_come(registry):
    job = await registry.submit()
    async with registry.database.write():  # of SQLite's one
        asked = asyncio.create_task(registry.leases.acquire(job.id, "worker-1"))
        await asyncio.sleep(0)  # it is in the line
        registry.clock.advance(20)
    acquired = await asked
    assert acquired.job.lease_expires == registry.clock() + timedelta(seconds=15)
    assert await reconcile(registry.database, wake_again_s=60, clock=registry.clock) == []


async def test_an_expired_lease_is_taken_over_with_a_greater_token(registry):
    job = await registry.submit()
    first = await registry.leases.acquire(job.id, "worker-1")
    assert first.job.fencing_token == 1
    registry.clock.advance(15)
    second = await registry.leases.acquire(job.id, "worker-2")
    assert (second.job.fencing_token, second.job.attempts, second.job.lost_leases) == (2, 2, 1)


async def test_a_stale_token_changes_nothing(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "worker-1")
    registry.clock.advance(15)
    await registry.leases.acquire(job.id, "worker-2")
    before = await events_of(registry, job)
    stored = store_checkpoint(registry.artifacts)
    for stale_call in (
        registry.leases.renew(job.id, 1, [PROGRESS], ["hello"]),
        registry.leases.finish(job.id, 1, Failed("RANK_DIED", "rank 1 died"), [PROGRESS]),
        registry.leases.finish(job.id, 1, Succeeded(stored.files)),
        registry.leases.release(job.id, 1, "told to stop"),
    ):
        with pytest.raises(Aborted, match=r"token 1 of job .* is stale"):
            await stale_call
    assert await events_of(registry, job) == before
    assert (await registry.jobs.get(job.id)).state == RUNNING
    assert not (await registry.versions.list_versions("", PageRequest())).rows


async def test_renewing_extends_the_lease_and_records_progress_and_messages(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "worker-1")
    registry.clock.advance(10)
    renewed = await registry.leases.renew(job.id, 1, [PROGRESS], ["resumed from step 2"])
    assert not renewed.cancel_requested
    assert renewed.progress["step"] == 3
    assert (await events_of(registry, job))[-2:] == [
        ("progress", PROGRESS),
        ("message", {"message": "resumed from step 2"}),
    ]
    registry.clock.advance(10)
    with pytest.raises(Aborted):
        await registry.leases.acquire(job.id, "worker-2")


async def test_an_expired_lease_that_nobody_took_over_may_be_renewed(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "worker-1")
    registry.clock.advance(60)
    await registry.leases.renew(job.id, 1)
    assert await reconcile(registry.database, wake_again_s=10, clock=registry.clock) == []


async def test_a_lease_that_the_reconciler_ended_is_not_renewed(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "worker-1")
    registry.clock.advance(15)
    await reconcile(registry.database, wake_again_s=10, clock=registry.clock)
    with pytest.raises(Aborted):
        await registry.leases.renew(job.id, 1)


async def test_success_registers_the_version_deploys_it_and_ends_the_job_at_once(registry):
    job = await registry.submit(spec=await registry.fine_tune_spec(), deploy_alias="bud")
    await registry.leases.acquire(job.id, "worker-1")
    stored = store_checkpoint(registry.artifacts)
    done = await registry.leases.finish(job.id, 1, Succeeded(stored.files), [PROGRESS])
    assert (done.state, done.model_version) == (SUCCEEDED, "sprout@1")
    version = await registry.aliases.resolve("bud")
    assert (version.name, version.parent, version.licence) == ("sprout@1", "seedling@1", "apache-2.0")
    assert (version.job_id, version.source, version.datasets) == (job.id, "job", ["tasks@1"])
    assert (await registry.deployments.list_deployments(PageRequest())).rows[0].version == "sprout@1"
    assert (await events_of(registry, job))[-1] == ("state", {"state": SUCCEEDED})


async def test_finishing_again_with_the_same_token_makes_no_second_version(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "worker-1")
    stored = store_checkpoint(registry.artifacts)
    finishing = [registry.leases.finish(job.id, 1, Succeeded(stored.files)) for _ in range(3)]
    jobs = await asyncio.gather(*finishing)
    assert {done.model_version for done in jobs} == {"sprout@1"}
    assert len((await registry.versions.list_versions("sprout", PageRequest())).rows) == 1


async def test_success_with_a_damaged_checkpoint_leaves_the_job_running(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "worker-1")
    stored = store_checkpoint(registry.artifacts, weights=safetensors_bytes({"ln_f.bias": (12,)}))
    with pytest.raises(InvalidArgument, match=r"missing tensors word_embeddings\.weight"):
        await registry.leases.finish(job.id, 1, Succeeded(stored.files))
    assert (await registry.jobs.get(job.id)).state == RUNNING


async def test_a_failure_keeps_its_code_and_the_parameter_at_fault(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "worker-1")
    failed = await registry.leases.finish(job.id, 1, Failed("BAD_DATA", "no tokens", "sequence_length"))
    assert failed.state == FAILED
    assert failed.error == {"code": "BAD_DATA", "message": "no tokens", "parameter": "sequence_length"}
    with pytest.raises(FailedPrecondition, match=f"job {job.id} has already ended: FAILED"):
        await registry.leases.acquire(job.id, "worker-2")


async def test_a_released_job_waits_again_with_a_wake_up(registry):
    job = await registry.submit()
    await empty_outbox(registry)
    await registry.leases.acquire(job.id, "worker-1")
    await registry.leases.release(job.id, 1, "worker shuts down")
    released = await registry.jobs.get(job.id)
    assert (released.state, released.lost_leases, await wakeups(registry, job)) == (PENDING, 0, 1)
    with pytest.raises(Aborted):
        await registry.leases.renew(job.id, 1)
    assert (await registry.leases.acquire(job.id, "worker-2")).job.fencing_token == 2


async def test_a_cancelled_job_ends_when_its_worker_says_that_it_stopped(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "worker-1")
    await registry.jobs.cancel(job.id)
    assert (await registry.leases.renew(job.id, 1)).cancel_requested
    assert (await registry.leases.finish(job.id, 1, Stopped())).state == CANCELLED


async def test_a_worker_cannot_end_a_job_as_cancelled_that_nobody_cancelled(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "worker-1")
    with pytest.raises(FailedPrecondition, match="nobody asked to cancel"):
        await registry.leases.finish(job.id, 1, Stopped())
    assert (await registry.jobs.get(job.id)).state == RUNNING


@pytest.mark.parametrize("how", ["release", "reconcile", "acquire"])
async def test_a_cancelled_job_whose_worker_is_gone_is_not_run_again(registry, how):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "worker-1")
    await registry.jobs.cancel(job.id)
    if how == "release":
        await registry.leases.release(job.id, 1, "worker shuts down")
    registry.clock.advance(15)
    if how == "reconcile":
        await reconcile(registry.database, wake_again_s=10, clock=registry.clock)
    with pytest.raises(FailedPrecondition, match="CANCELLED"):
        await registry.leases.acquire(job.id, "worker-2")
    assert (await registry.jobs.get(job.id)).state == CANCELLED


async def test_the_reconciler_wakes_a_job_whose_worker_fell_silent(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "worker-1")
    await empty_outbox(registry)
    registry.clock.advance(15)
    assert await reconcile(registry.database, wake_again_s=10, clock=registry.clock) == [job.id]
    assert ((await registry.jobs.get(job.id)).state, await wakeups(registry, job)) == (PENDING, 1)
    assert (await events_of(registry, job))[-2:] == [
        ("message", {"message": "the lease of worker-1 expired"}),
        ("state", {"state": PENDING}),
    ]


async def test_the_reconciler_wakes_a_pending_job_again_that_nobody_took(registry):
    job = await registry.submit()
    await empty_outbox(registry)  # sent, and lost by the broker
    registry.clock.advance(9)
    assert await reconcile(registry.database, wake_again_s=10, clock=registry.clock) == []
    registry.clock.advance(1)
    assert await reconcile(registry.database, wake_again_s=10, clock=registry.clock) == [job.id]
    registry.clock.advance(60)
    assert await reconcile(registry.database, wake_again_s=10, clock=registry.clock) == []  # one is waiting to be sent
    assert await wakeups(registry, job) == 1


async def test_a_job_whose_workers_keep_dying_fails_in_the_end(registry):
    job = await registry.submit()
    for _ in range(3):
        await registry.leases.acquire(job.id, "worker-1")
        registry.clock.advance(15)
        await reconcile(registry.database, wake_again_s=10, max_lost_leases=3, clock=registry.clock)
    failed = await registry.jobs.get(job.id)
    assert (failed.state, failed.error["code"], failed.attempts) == (FAILED, "ATTEMPTS_EXHAUSTED", 3)


async def test_the_lease_of_an_unknown_job_is_not_found(registry):
    with pytest.raises(NotFound, match="no job 'job-0'"):
        await registry.leases.acquire("job-0", "worker-1")
