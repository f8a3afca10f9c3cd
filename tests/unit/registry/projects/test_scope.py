"""What the use cases say to a project: of its own, of what is shared, and of what is another's."""

import asyncio

import pytest

from services.common.errors import AlreadyExists, FailedPrecondition, NotFound, PermissionDenied
from services.registry.alias_changes import NewChange
from services.registry.leases import Succeeded
from services.registry.models import NewModel
from services.registry.pages import PageRequest
from tests.support.projects import calling_for
from tests.support.registry_data import store_checkpoint


async def test_what_another_project_has_is_as_if_it_were_not_there(registry):
    with calling_for("other"):
        await registry.add_version("their-model")
        await registry.set_alias("their-alias", "their-model")
        await registry.deployments.create("their-deployment", "their-alias", 0)
        await registry.add_dataset("their-rows")
        job = await registry.submit(spec=await registry.pretrain_spec(datasets=["their-rows"]))
    page = PageRequest()
    with calling_for("lab"):
        for asked in (
            registry.models.get("their-model"),
            registry.versions.list_versions("their-model", page),
            registry.versions.lineage("their-model@1"),
            registry.aliases.resolve("their-model@1"),
            registry.aliases.at("their-alias"),
            registry.aliases.list_changes("their-alias", page),
            registry.set_alias("mine", "their-model"),
            registry.aliases.delete("their-alias", NewChange(principal="ada")),
            registry.deployments.create("mine", "their-alias", 0),
            registry.deployments.delete("their-deployment"),
            registry.datasets.get("their-rows"),
            registry.jobs.get(job.id),
            registry.jobs.cancel(job.id),
            anext(aiter(registry.jobs.watch(job.id, 0))),
        ):
            with pytest.raises(NotFound, match=r"^no ") as refused:
                await asked
            assert "did you mean" not in str(refused.value)
        lists = (
            registry.models.list_models(page),
            registry.versions.list_versions("", page),
            registry.aliases.list_aliases(page),
            registry.deployments.list_deployments(page),
            registry.jobs.list_jobs("", page),
        )
        assert [(await found).rows for found in lists] == [[]] * len(lists)
    assert (await registry.models.get("their-model")).project == "other"  # the platform sees all


async def test_two_projects_watch_their_jobs_at_once(registry):
    await registry.add_dataset()
    seen = {}

    async def watch(project):
        with calling_for(project):
            job = await registry.submit(spec=await registry.pretrain_spec(output_model=project))
            events = []
            async for event in registry.jobs.watch(job.id, 0):
                events.append(event.body["state"])
                if len(events) == 1:
                    await both_watch.wait()
                    await registry.jobs.cancel(job.id)
            seen[project] = events

    both_watch = asyncio.Barrier(2)
    await asyncio.gather(watch("lab"), watch("other"))
    assert seen == {"lab": ["PENDING", "CANCELLED"], "other": ["PENDING", "CANCELLED"]}


async def test_a_taken_name_says_that_it_is_taken_and_no_more(registry):
    with calling_for("other"):
        await registry.add_version("theirs")
        await registry.set_alias("their-alias", "theirs")
        await registry.deployments.create("their-deployment", "theirs", 0)
        await registry.add_dataset("their-rows")
    with calling_for("lab"):
        await registry.add_version("mine")
        for made, name in (
            (registry.models.create(NewModel(name="theirs", licence="mit")), "model 'theirs'"),
            (registry.add_version("theirs"), "model 'theirs'"),
            (registry.set_alias("their-alias", "mine"), "alias 'their-alias'"),
            (registry.deployments.create("their-deployment", "mine", 0), "deployment 'their-deployment'"),
            (registry.add_dataset("their-rows", "MULTITASK"), "dataset 'their-rows@1'"),
        ):
            with pytest.raises(AlreadyExists) as refused:
                await made
            assert str(refused.value) == f"{name} is taken; choose another name"


async def test_what_is_shared_is_used_by_all_and_changed_by_none(registry):
    await registry.add_version("shared")
    await registry.set_alias("production", "shared")
    await registry.deployments.create("production", "production", 1)
    shared_job = await registry.submit()
    with calling_for("lab"):
        assert (await registry.aliases.resolve("production")).name == "shared@1"
        assert [row.deployment.name for row in (await registry.deployments.list_deployments(PageRequest())).rows]
        tuned = await registry.add_version("tuned", parent="shared")
        assert (tuned.project, tuned.parent) == ("lab", "shared@1")
        await registry.set_alias("mine", "shared")
        for changed in (
            registry.add_version("shared"),
            registry.set_alias("production", "tuned"),
            registry.aliases.delete("production", NewChange(principal="ada")),
            registry.deployments.create("production", "production", 2),
            registry.deployments.delete("production"),
            registry.jobs.cancel(shared_job.id),
        ):
            with pytest.raises((PermissionDenied, FailedPrecondition)):
                await changed
    assert (await registry.aliases.resolve("production")).name == "shared@1"
    assert (await registry.jobs.get(shared_job.id)).cancel_requested is False
    assert (await registry.models.get("shared")).latest_version == 1


async def test_what_a_job_makes_is_of_its_project(registry):
    with calling_for("lab"):
        await registry.add_dataset("rows")
        spec = await registry.pretrain_spec(datasets=["rows"])
        job = await registry.submit(spec=spec, deploy_alias="bud")
    await registry.leases.acquire(job.id, "w1")
    await registry.leases.finish(job.id, 1, Succeeded(store_checkpoint(registry.artifacts).files))
    made = [await registry.models.get("sprout"), await registry.aliases.resolve("bud")]
    [deployment] = (await registry.deployments.list_deployments(PageRequest())).rows
    assert {row.project for row in (*made, deployment.deployment)} == {"lab"}
    with calling_for("other"), pytest.raises(NotFound):
        await registry.aliases.resolve("bud")


async def test_a_job_that_could_not_give_its_version_a_name_is_refused_before_it_runs(registry):
    await registry.add_version("shared")
    await registry.set_alias("production", "shared")
    with calling_for("other"):
        await registry.add_version("theirs")
        await registry.set_alias("their-alias", "theirs")
    with calling_for("lab"):
        await registry.add_dataset("rows")
        for changes, deploy, error in (
            ({"output_model": "theirs"}, "", AlreadyExists),
            ({"output_model": "shared"}, "", PermissionDenied),
            ({}, "their-alias", AlreadyExists),
            ({}, "production", PermissionDenied),
        ):
            spec = await registry.pretrain_spec(datasets=["rows"], **changes)
            with pytest.raises(error):
                await registry.submit(spec=spec, deploy_alias=deploy)
        assert not (await registry.jobs.list_jobs("", PageRequest())).rows


async def test_what_the_platform_makes_of_a_projects_is_the_projects(registry):
    with calling_for("lab"):
        await registry.add_version("seedling")
    tuned = await registry.add_version("tuned", parent="seedling")
    again = await registry.add_version("seedling")
    alias = await registry.set_alias("bud", "seedling")
    deployed = await registry.deployments.create("bud", "bud", 0)
    assert {row.project for row in (tuned, again, alias, deployed.deployment)} == {"lab"}
    await registry.add_version("shared")
    await registry.set_alias("production", "shared")
    with pytest.raises(FailedPrecondition, match="alias 'production' is shared by all projects and would lead to what"):
        await registry.set_alias("production", "seedling")
    with calling_for("other"):
        assert (await registry.aliases.resolve("production")).name == "shared@1"


async def test_the_ancestors_that_a_project_does_not_see_are_left_out_of_a_lineage(registry):
    with calling_for("lab"):
        await registry.add_version("seedling")
    await registry.models.create(NewModel(name="published", licence="apache-2.0"))
    await registry.add_version("published", parent="seedling")
    await registry.add_version("tuned", parent="published")
    with calling_for("other"):
        assert [row.name for row in await registry.versions.lineage("tuned")] == ["published@1"]
    assert [row.name for row in await registry.versions.lineage("tuned")] == ["published@1", "seedling@1"]
