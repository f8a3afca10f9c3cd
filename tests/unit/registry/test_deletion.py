"""Deleting versions and models: what keeps them, what is left of them, and the way back."""

import re

import pytest

from services.common.errors import AlreadyExists, FailedPrecondition, NotFound
from services.registry.alias_changes import NewChange
from services.registry.catalogue import seed_catalogue
from services.registry.deletion import KEPT_S
from services.registry.models import NewModel
from services.registry.pages import PageRequest
from services.registry.search import ModelQuery, VersionQuery
from services.registry.verification import OK
from tests.unit.registry.test_collection import age, collect, everything, garbage


async def delete(registry, name="seedling@1"):
    return await registry.deletions.delete_version(name, "ada")


async def names(registry, **query):
    return [row.name for row in (await registry.versions.list_versions("", PageRequest(), VersionQuery(**query))).rows]


async def model_names(registry, **query):
    return [row.name for row in (await registry.models.list_models(PageRequest(), ModelQuery(**query))).rows]


async def test_a_deleted_version_does_not_resolve_and_the_error_says_who_when_and_the_way_back(registry):
    await registry.add_version()
    deleted = await delete(registry)
    assert (deleted.state, deleted.deleted_by, deleted.delete_time) == ("DELETED", "ada", registry.clock.now)
    said = r"'seedling@1' was deleted at 2026-01-01 00:00:00\+00:00 by 'ada'; `anthesis models undelete seedling@1`"
    with pytest.raises(NotFound, match=said):
        await registry.aliases.resolve("seedling@1")
    with pytest.raises(FailedPrecondition, match="has no version yet"):
        await registry.aliases.resolve("seedling")
    assert await names(registry) == []
    assert await names(registry, deleted=True) == ["seedling@1"]
    back = await registry.deletions.undelete_version("seedling@1")
    assert (back.state, back.delete_time, back.deleted_by, back.expire_time) == ("READY", None, "", None)
    assert (await registry.aliases.resolve("seedling")).name == "seedling@1"


async def test_a_models_name_means_its_newest_version_that_is_not_deleted_and_no_number_comes_twice(registry):
    for _ in range(3):
        await registry.add_version()
    await delete(registry, "seedling@3")
    await delete(registry, "seedling@1")
    assert (await registry.aliases.resolve("seedling")).name == "seedling@2"
    assert (await registry.add_version()).name == "seedling@4"
    await delete(registry, "seedling@4")
    await registry.deletions.undelete_version("seedling@3")
    assert (await registry.aliases.resolve("seedling")).name == "seedling@3"
    assert (await registry.add_version()).name == "seedling@5"


async def test_an_alias_a_deployment_a_child_and_a_waiting_job_each_keep_a_version(registry):
    spec = await registry.fine_tune_spec()
    job = await registry.submit(spec=spec)
    await registry.set_alias("production", "seedling@1")
    await registry.deployments.create("web", "seedling@1", 1)
    await registry.add_version("child", licence="", parent="seedling@1")
    await registry.add_version("merged", licence="", parent="child", other_parents=["seedling@1"])

    async def needed_by():
        with pytest.raises(FailedPrecondition, match="'seedling@1' is needed by") as refused:
            await delete(registry)
        return re.findall(r"(alias|deployment|its child|job) '([^']+)'", str(refused.value))

    all_of_them = [
        ("alias", "production"),
        ("deployment", "web"),
        ("its child", "child@1"),
        ("its child", "merged@1"),
        ("job", job.id),
    ]
    assert await needed_by() == all_of_them
    await registry.set_alias("production", "child@1")
    assert await needed_by() == all_of_them[1:]
    await registry.deployments.delete("web")
    assert await needed_by() == all_of_them[2:]
    await delete(registry, "merged@1")
    assert await needed_by() == [all_of_them[2], all_of_them[4]]
    await registry.set_alias("production", "seedling@1")
    await registry.set_alias("production", "child@1")
    with pytest.raises(FailedPrecondition, match="alias 'production'"):
        await delete(registry, "child@1")
    await registry.aliases.delete("production", NewChange(principal="ada"))
    await delete(registry, "child@1")
    assert await needed_by() == [all_of_them[4]]
    await registry.jobs.cancel(job.id)
    assert (await delete(registry)).state == "DELETED"


async def test_a_version_that_another_is_named_like_is_not_kept_by_it(registry):
    for _ in range(11):
        await registry.add_version()
    await registry.add_version("child", licence="", parent="seedling@11")
    await registry.add_version("merged", licence="", parent="child", other_parents=["seedling@11"])
    assert (await delete(registry, "seedling@1")).state == "DELETED"


@pytest.mark.parametrize("name", ["seedling", "flower", "seedling@2", "", "a\0b", "x" * 10_000])
async def test_only_a_versions_own_name_deletes_it(registry, name):
    await registry.add_version()
    await registry.set_alias("flower", "seedling@1")
    with pytest.raises(NotFound, match="name one as <model>@<number>"):
        await delete(registry, name)
    assert await names(registry) == ["seedling@1"]


async def test_what_is_deleted_is_deleted_once_and_what_is_there_is_not_brought_back(registry):
    await registry.add_version()
    with pytest.raises(AlreadyExists, match="is not deleted"):
        await registry.deletions.undelete_version("seedling@1")
    await delete(registry)
    with pytest.raises(NotFound, match="was deleted at"):
        await delete(registry)


async def test_a_rollback_to_a_deleted_version_changes_nothing(registry):
    await registry.add_version()
    await registry.add_version()
    await registry.set_alias("flower", "seedling@1")
    await registry.set_alias("flower", "seedling@2")
    await delete(registry)
    for generation in (None, 1):
        with pytest.raises(NotFound, match="'seedling@1' was deleted"):
            await registry.aliases.roll_back("flower", generation, NewChange(principal="ada"))
    assert (await registry.aliases.resolve("flower")).name == "seedling@2"
    await registry.deletions.undelete_version("seedling@1")
    assert (await registry.aliases.roll_back("flower", None, NewChange(principal="ada"))).version == "seedling@1"


async def test_where_an_alias_pointed_can_still_be_answered(registry):
    await registry.add_version()
    await registry.add_version()
    await registry.set_alias("flower", "seedling@1")
    then = registry.clock.now
    registry.clock.advance(60)
    await registry.set_alias("flower", "seedling@2")
    await delete(registry)
    change, version = await registry.aliases.at("flower", then)
    assert (change.version, version.state) == ("seedling@1", "DELETED")


async def test_files_are_kept_for_the_grace_and_purged_after_it_and_the_row_stays_for_good(registry):
    await registry.add_version()
    age(registry.artifacts, registry.clock.now)
    before = everything(registry.artifacts)
    await delete(registry)
    registry.clock.advance(KEPT_S - 1)
    assert await collect(registry) == set()
    assert {item.state async for item in registry.verification.everything()} == {OK}
    registry.clock.advance(2)
    assert await garbage(registry) == before  # a dry run says what would go, and changes nothing
    [still] = (await registry.versions.list_versions("seedling", PageRequest(), VersionQuery(deleted=True))).rows
    assert (still.state, len(still.files) > 0) == ("DELETED", True)
    assert await collect(registry) == before
    [purged] = (await registry.versions.list_versions("seedling", PageRequest(), VersionQuery(deleted=True))).rows
    assert (purged.state, purged.files, purged.size_bytes, purged.licence) == ("PURGED", [], 0, "apache-2.0")
    with pytest.raises(NotFound, match="its files are gone; choose another: `anthesis models show seedling`"):
        await registry.aliases.resolve("seedling@1")
    with pytest.raises(FailedPrecondition, match="files of version 'seedling@1' are gone"):
        await registry.deletions.undelete_version("seedling@1")
    assert (await registry.add_version()).name == "seedling@2"


async def test_a_version_brought_back_late_keeps_its_files(registry):
    await registry.add_version()
    age(registry.artifacts, registry.clock.now)
    await delete(registry)
    registry.clock.advance(2 * KEPT_S)
    await registry.deletions.undelete_version("seedling@1")
    assert await collect(registry) == set()
    assert {item.state async for item in registry.verification.version("seedling")} == {OK}


async def test_a_file_that_another_version_has_outlives_the_deleted_one(registry):
    first = await registry.add_version()
    await registry.add_version("other")
    age(registry.artifacts, registry.clock.now)
    await delete(registry)
    registry.clock.advance(KEPT_S)
    weights = {file["digest"] for file in first.files if file["path"] == "model.safetensors"}
    assert not weights & await collect(registry)
    assert {item.state async for item in registry.verification.version("other")} == {OK}


async def test_lineage_tells_of_what_was_purged(registry):
    await registry.add_version("a")
    await registry.add_version("b", licence="", parent="a")
    await delete(registry, "b@1")
    await delete(registry, "a@1")
    with pytest.raises(
        FailedPrecondition, match="made from 'a@1', which is deleted; first `anthesis models undelete a@1`"
    ):
        await registry.deletions.undelete_version("b@1")
    await registry.deletions.undelete_version("a@1")
    await registry.deletions.undelete_version("b@1")
    assert [version.name for version in await registry.versions.lineage("b")] == ["a@1"]


async def test_a_model_is_deleted_when_all_its_versions_are_and_leaves_lists(registry):
    await registry.add_version()
    await registry.add_version()
    await delete(registry, "seedling@2")
    with pytest.raises(FailedPrecondition, match="has version 'seedling@1'; first `anthesis models delete seedling@1`"):
        await registry.deletions.delete_model("seedling", "ada")
    await delete(registry, "seedling@1")
    await registry.deletions.delete_model("seedling", "ada")
    assert (await model_names(registry), await model_names(registry, deleted=True)) == ([], ["seedling"])
    for refused in (registry.models.get("seedling"), registry.aliases.resolve("seedling")):
        with pytest.raises(NotFound, match=r"model 'seedling' was deleted at .* by 'ada'; `anthesis models undelete"):
            await refused
    with pytest.raises(FailedPrecondition, match="is deleted; first `anthesis models undelete seedling`"):
        await registry.deletions.undelete_version("seedling@2")
    await registry.deletions.undelete_model("seedling")
    await registry.deletions.undelete_version("seedling@2")
    assert (await registry.aliases.resolve("seedling")).name == "seedling@2"


async def test_a_deleted_models_name_is_not_free_and_gets_no_version(registry):
    await registry.models.create(NewModel(name="seedling", licence="apache-2.0"))
    await registry.deletions.delete_model("seedling", "ada")
    said = "was deleted at .*; `anthesis models undelete seedling` brings it back, or choose another model name"
    with pytest.raises(FailedPrecondition, match=said):
        await registry.models.create(NewModel(name="seedling", licence="mit"))
    with pytest.raises(FailedPrecondition, match=said):
        await registry.add_version()
    with pytest.raises(FailedPrecondition, match=said):
        await registry.submit(spec=await registry.pretrain_spec(output_model="seedling"))
    assert await names(registry, deleted=True) == []


async def test_a_model_that_a_job_makes_or_that_is_of_the_catalogue_stays(registry):
    await registry.models.create(NewModel(name="sprout", licence="apache-2.0"))
    job = await registry.submit()
    with pytest.raises(FailedPrecondition, match=f"gets a version by job '{job.id}'"):
        await registry.deletions.delete_model("sprout", "ada")
    await registry.jobs.cancel(job.id)
    await registry.deletions.delete_model("sprout", "ada")
    await seed_catalogue(registry.database)
    with pytest.raises(FailedPrecondition, match="of the built-in catalogue"):
        await registry.deletions.delete_model("bigscience/bloom", "ada")


async def test_close_names_that_are_offered_are_not_those_of_deleted_versions(registry):
    await registry.add_version()
    await registry.add_version()
    await delete(registry, "seedling@2")
    with pytest.raises(NotFound) as refused:
        await registry.aliases.resolve("seedling@22")
    assert "'seedling@1'" in str(refused.value)
    assert "'seedling@2'" not in str(refused.value)
