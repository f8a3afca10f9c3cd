"""How much a project may have, exactly, and what is never refused."""

import asyncio
import hashlib

import pytest

from services.common.errors import InvalidArgument, ResourceExhausted
from services.registry.leases import Succeeded
from services.registry.pages import PageRequest
from services.registry.projects.service import ProjectChange, Projects
from tests.support.projects import calling_for
from tests.support.registry_data import store_checkpoint


@pytest.fixture
async def projects(registry, database, clock):
    await registry.add_dataset()  # shared
    made = Projects(database, clock)
    for name in ("lab", "other"):
        await made.create(name)
    return made


async def limit(projects, **quotas):
    await projects.update("lab", ProjectChange(quotas=quotas))


async def used(projects):
    return (await projects.get_with_used("lab"))[1]


async def begin(registry, size_bytes, principal="lab/ada"):
    digest = "sha256:" + hashlib.sha256(str(size_bytes).encode()).hexdigest()
    return await registry.uploads.begin(principal, digest, size_bytes)


async def test_quotas_are_set_one_by_one_and_taken_back(projects):
    await limit(projects, max_jobs=2)
    await limit(projects, max_stored_bytes=10)
    project = await projects.get("lab")
    assert (project.max_jobs, project.max_stored_bytes) == (2, 10)
    await limit(projects, max_jobs=0)
    assert (await projects.get("lab")).max_jobs == 0
    with pytest.raises(InvalidArgument, match="max_jobs=9223372036854775808 is out of range; choose 0"):
        await limit(projects, max_jobs=1 << 63)
    assert (await projects.create("third", quotas={"max_jobs": 7})).max_jobs == 7


async def test_a_project_has_as_many_jobs_as_it_may_and_not_one_more(registry, projects):
    await limit(projects, max_jobs=2)
    with calling_for("lab"):
        spec = await registry.pretrain_spec()
        jobs = [await registry.submit(spec=spec) for _ in range(2)]
        with pytest.raises(
            ResourceExhausted, match="project 'lab' has 2 jobs that have not ended and may have 2; wait"
        ):
            await registry.submit(spec=spec)
        assert (await used(projects)).jobs == 2
        await registry.jobs.cancel(jobs[0].id)
        again = await registry.submit(spec=spec, idempotency_key="k")
        assert (await registry.submit(spec=spec, idempotency_key="k")).id == again.id  # no other job
    with calling_for("other"):
        await registry.submit(spec=await registry.pretrain_spec(output_model="theirs"))
    await registry.submit(spec=await registry.pretrain_spec(output_model="shared"))


async def test_of_jobs_submitted_at_once_no_more_are_taken_than_may_be(registry, projects):
    await limit(projects, max_jobs=3)
    with calling_for("lab"):
        spec = await registry.pretrain_spec()
        ended = await asyncio.gather(*(registry.submit(spec=spec) for _ in range(8)), return_exceptions=True)
        assert len((await registry.jobs.list_jobs("", PageRequest())).rows) == 3
    assert sum(isinstance(end, ResourceExhausted) for end in ended) == 5


async def test_uploads_under_way_count_as_stated(registry, projects):
    await limit(projects, max_stored_bytes=100)
    with calling_for("lab"):
        await begin(registry, 60)
        assert (await used(projects)).stored_bytes == 60
        with pytest.raises(
            ResourceExhausted, match="has 60 bytes in the store, with uploads under way, and would have 41"
        ):
            await begin(registry, 41)
        await begin(registry, 40)
        await begin(registry, 60)  # goes on with the first
    assert (await used(projects)).stored_bytes == 100
    with calling_for("other"):
        await begin(registry, 10**6, "other/ada")


async def test_what_a_project_refers_to_counts_once(registry, projects):
    with calling_for("lab"):
        version = await registry.add_version("mine")
        sizes = {file["digest"]: file["size_bytes"] for file in version.files}
        assert (await used(projects)).stored_bytes == sum(sizes.values())
        await limit(projects, max_stored_bytes=sum(sizes.values()))
        with pytest.raises(ResourceExhausted, match="bytes in the store"):
            await registry.add_dataset("rows")
        assert [row.dataset for row in (await registry.datasets.list_datasets(PageRequest())).rows] == ["udhr"]
        with pytest.raises(ResourceExhausted, match="bytes in the store"):
            await registry.add_version("mine")  # the same weights, but texts of its own go along
        assert (await registry.models.get("mine")).latest_version == 1
        await limit(projects, max_stored_bytes=0)
        await registry.add_dataset("rows")


async def test_a_job_that_has_run_is_not_lost_over_its_bytes(registry, projects):
    with calling_for("lab"):
        job = await registry.submit()
    await limit(projects, max_stored_bytes=1, max_jobs=1)
    await registry.leases.acquire(job.id, "w1")
    with calling_for("", role="service", name="trainer"):
        done = await registry.leases.finish(job.id, 1, Succeeded(store_checkpoint(registry.artifacts).files))
    assert done.model_version == "sprout@1"
    assert (await used(projects)).stored_bytes > 1
