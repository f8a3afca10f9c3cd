"""What a job's attempts say of the energy that they used is added up, once."""

import pytest

from services.common.errors import Aborted, InvalidArgument
from services.registry.job_energy import Energy, energy_of
from services.registry.rpc import messages


async def energy(registry, job) -> Energy | None:
    return energy_of((await registry.jobs.get(job.id)).energy)


async def report(registry, job, token, **changes):
    await registry.leases.renew(job.id, token, energy=Energy(**changes))


async def test_an_attempts_newest_report_counts_however_often_it_is_heard(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "w1")
    assert await energy(registry, job) is None
    for joules in (10.0, 25.0, 25.0):
        await report(registry, job, 1, joules={"package_joules": joules})
    assert await energy(registry, job) == Energy(joules={"package_joules": 25.0}, attempts=1)
    await registry.leases.renew(job.id, 1)
    assert (await energy(registry, job)).joules == {"package_joules": 25.0}


async def test_attempts_are_added_and_those_without_a_counter_not_counted(registry):
    job = await registry.submit()
    reports = [
        {"joules": {"package_joules": 10.0, "dram_joules": 1.0}},
        {"unmeasured": ("processors: no counter",)},
        {"joules": {"package_joules": 5.0, "gpu_joules": 7.0}, "unmeasured": ("processors: no counter",)},
    ]
    for token, reported in enumerate(reports, start=1):
        await registry.leases.acquire(job.id, f"w{token}")
        await report(registry, job, token, **reported)
        await registry.leases.release(job.id, token, "the worker was told to stop")
    found = await energy(registry, job)
    assert found == Energy(
        joules={"package_joules": 15.0, "dram_joules": 1.0, "gpu_joules": 7.0},
        unmeasured=("processors: no counter",),
        attempts=2,
    )
    assert found.kwh == pytest.approx(23 / 3.6e6)


@pytest.mark.parametrize(
    "bad",
    [
        {"joules": {"gpu_joules": -1.0}},
        {"joules": {"gpu_joules": float("nan")}},
        {"joules": {"gpu_joules": float("inf")}},
        {"unmeasured": ("x" * 301,)},
        {"unmeasured": ("x",) * 11},
    ],
)
async def test_what_is_no_energy_is_refused_and_changes_nothing(registry, bad):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "w1")
    expires = (await registry.jobs.get(job.id)).lease_expires
    registry.clock.advance(1)
    with pytest.raises(InvalidArgument, match=r"energy\."):
        await report(registry, job, 1, **bad)
    after = await registry.jobs.get(job.id)
    assert (after.energy, after.lease_expires) == (None, expires)


async def test_a_stale_attempt_adds_nothing(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "w1")
    await registry.leases.release(job.id, 1, "stopped")
    await registry.leases.acquire(job.id, "w2")
    with pytest.raises(Aborted):
        await report(registry, job, 1, joules={"package_joules": 10.0})
    assert await energy(registry, job) is None


async def test_a_job_shows_it_and_leaves_out_what_was_not_measured(registry):
    job = await registry.submit()
    assert not messages.job(job).HasField("energy")
    await registry.leases.acquire(job.id, "w1")
    await report(registry, job, 1, joules={"gpu_joules": 0.0}, unmeasured=("processors: no counter",))
    shown = messages.job(await registry.jobs.get(job.id)).energy
    assert [field.name for field, _ in shown.ListFields()] == ["gpu_joules", "unmeasured", "attempts"]
    assert messages.read_energy(shown) == Energy(joules={"gpu_joules": 0.0}, unmeasured=("processors: no counter",))
