import asyncio

import pytest

from services.common.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from services.registry.alias_changes import NewChange
from services.registry.aliases import Aliases
from services.registry.leases import Succeeded
from services.registry.pages import PageRequest
from tests.support.registry_data import store_checkpoint

ADA = NewChange(principal="ada")


@pytest.fixture
async def registry(registry):
    """With `seedling@1` to `seedling@3`."""
    for _ in range(3):
        await registry.add_version()
    return registry


async def history(registry, name="flower"):
    """(generation, kind, version) of each change, newest first."""
    page = await registry.aliases.list_changes(name, PageRequest())
    return [(change.generation, change.kind, change.version) for change in page.rows]


async def roll_back(registry, generation=None, **changes):
    new = NewChange(**({"principal": "ada"} | changes))
    return (await registry.aliases.roll_back("flower", generation, new)).version


async def points_to(registry, time=None):
    _, version = await registry.aliases.at("flower", time)
    return version.name


async def test_an_alias_has_a_plain_name_and_an_existing_target(registry):
    with pytest.raises(InvalidArgument, match="alias name 'a/b' is not allowed"):
        await registry.set_alias("a/b", "seedling")
    with pytest.raises(NotFound):
        await registry.set_alias("flower", "tulip")
    with pytest.raises(NotFound, match="no alias 'flower'; `anthesis aliases list`"):
        await registry.aliases.list_changes("flower", PageRequest())


async def test_every_change_is_kept_with_who_when_and_why(registry):
    first = registry.clock.now
    await registry.set_alias("flower", "seedling@1", reason="première")
    registry.clock.advance(60)
    moved = await registry.set_alias("flower", "seedling@2", principal="bob")
    assert (moved.version, moved.generation, moved.update_time) == ("seedling@2", 2, registry.clock.now)
    newest, oldest = (await registry.aliases.list_changes("flower", PageRequest())).rows
    assert (newest.generation, newest.kind, newest.version, newest.principal) == (2, "SET", "seedling@2", "bob")
    assert (oldest.generation, oldest.time, oldest.principal, oldest.reason) == (1, first, "ada", "première")


async def test_pointing_an_alias_where_it_points_changes_nothing(registry):
    before = await registry.set_alias("flower", "seedling@3")
    registry.clock.advance(60)
    again = await registry.set_alias("flower", "seedling", reason="again")
    assert (again.generation, again.update_time) == (1, before.update_time)
    assert await history(registry) == [(1, "SET", "seedling@3")]


async def test_a_history_comes_in_pages_of_its_own_alias(registry):
    for number in (1, 2, 3, 1, 2):
        await registry.set_alias("flower", f"seedling@{number}")
    await registry.set_alias("weed", "seedling@1")
    generations, token = [], ""
    while True:
        page = await registry.aliases.list_changes("flower", PageRequest(2, token))
        generations += [change.generation for change in page.rows]
        token = page.next_token
        if not token:
            break
        with pytest.raises(InvalidArgument, match="is not from this list"):
            await registry.aliases.list_changes("weed", PageRequest(2, token))
    assert generations == [5, 4, 3, 2, 1]


@pytest.mark.parametrize("act", ["set", "roll back", "delete"])
async def test_who_comes_second_is_told_what_came_first(registry, act):
    for number in (1, 2, 3):
        await registry.set_alias("flower", f"seedling@{number}")
    stale = NewChange(principal="bob", if_generation=2)
    acts = {
        "set": lambda: registry.aliases.set("flower", "seedling@1", stale),
        "roll back": lambda: registry.aliases.roll_back("flower", None, stale),
        "delete": lambda: registry.aliases.delete("flower", stale),
    }
    with pytest.raises(Aborted, match=r"'flower' is at generation 3 \(seedling@3\), not at if_generation=2; see"):
        await acts[act]()
    assert await history(registry) == [(n, "SET", f"seedling@{n}") for n in (3, 2, 1)]


async def test_a_mover_who_names_the_newest_generation_moves_it_and_without_one_the_last_writer_wins(registry):
    await registry.set_alias("flower", "seedling@1", if_generation=0)
    await registry.set_alias("flower", "seedling@2", if_generation=1)
    await registry.set_alias("flower", "seedling@3")
    assert await points_to(registry) == "seedling@3"


async def test_generation_zero_only_makes_an_alias(registry):
    with pytest.raises(Aborted, match="'flower' does not exist; if_generation=4 must be 0 to make it"):
        await registry.set_alias("flower", "seedling@1", if_generation=4)
    with pytest.raises(NotFound):
        await history(registry)
    await registry.set_alias("flower", "seedling@1", if_generation=0)
    with pytest.raises(Aborted, match="at generation 1"):
        await registry.set_alias("flower", "seedling@1", if_generation=0)
    await registry.aliases.delete("flower", ADA)
    with pytest.raises(Aborted, match=r"generation 2 \(deleted\), not at if_generation=1"):
        await registry.set_alias("flower", "seedling@1", if_generation=1)
    assert (await registry.set_alias("flower", "seedling@1", if_generation=0)).generation == 3


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("é" * 1001, "reason has 1001 characters; use at most 1000"),
        ("a\nb", r"reason has '\\n' at character 2; write one plain line"),
        ("\x1b[2J", r"reason has '\\x1b' at character 1"),
        ("\0", r"reason has '\\x00'"),
    ],
)
async def test_a_reason_is_one_plain_line(registry, reason, message):
    with pytest.raises(InvalidArgument, match=message):
        await registry.set_alias("flower", "seedling@1", reason=reason)
    assert (await registry.set_alias("flower", "seedling@1", reason="é" * 1000)).generation == 1


async def test_rolling_back_twice_goes_two_versions_back_and_then_says_that_nothing_is_before(registry):
    for number in (1, 2, 3):
        await registry.set_alias("flower", f"seedling@{number}")
    assert [await roll_back(registry), await roll_back(registry)] == ["seedling@2", "seedling@1"]
    with pytest.raises(FailedPrecondition, match="'flower' has no version before seedling@1; name one of its gen"):
        await roll_back(registry)
    newest = (await registry.aliases.list_changes("flower", PageRequest())).rows[0]
    assert (newest.generation, newest.kind, newest.restored_generation) == (5, "ROLLBACK", 1)


async def test_what_was_undone_is_not_come_upon_again(registry):
    for number in (1, 2):
        await registry.set_alias("flower", f"seedling@{number}")
    await roll_back(registry)
    await registry.set_alias("flower", "seedling@3")
    assert await roll_back(registry) == "seedling@1"
    with pytest.raises(FailedPrecondition):
        await roll_back(registry)


async def test_an_alias_is_rolled_back_to_a_named_generation_and_forth_again(registry):
    for number in (1, 2, 3):
        await registry.set_alias("flower", f"seedling@{number}")
    assert await roll_back(registry, 1, if_generation=3) == "seedling@1"
    assert await roll_back(registry, 3) == "seedling@3"
    assert await roll_back(registry) == "seedling@2"
    for generation in (0, 7, 2**32 - 1):
        with pytest.raises(NotFound, match=f"has no generation {generation}; choose one of 1 to 6"):
            await roll_back(registry, generation)


async def test_a_deleted_alias_names_nothing_but_what_it_named_is_still_known(registry):
    await registry.set_alias("flower", "seedling@1")
    lived = registry.clock.now
    registry.clock.advance(60)
    await registry.aliases.delete("flower", ADA)
    with pytest.raises(NotFound, match="no model, version or alias 'flower'"):
        await registry.aliases.resolve("flower")
    with pytest.raises(NotFound, match=r"'flower' was deleted at 2026-01-01 00:01:00\+00:00 by 'ada'"):
        await registry.aliases.at("flower")
    with pytest.raises(NotFound, match="'flower' is deleted already"):
        await registry.aliases.delete("flower", ADA)
    assert (await registry.aliases.list_aliases(PageRequest())).rows == []
    assert await points_to(registry, lived) == "seedling@1"
    assert await history(registry) == [(2, "DELETE", None), (1, "SET", "seedling@1")]


async def test_a_rollback_brings_a_deleted_alias_back_and_skips_deletions(registry):
    for number in (1, 2):
        await registry.set_alias("flower", f"seedling@{number}")
    await registry.aliases.delete("flower", ADA)
    assert await roll_back(registry) == "seedling@2"
    await registry.aliases.delete("flower", ADA)
    await registry.set_alias("flower", "seedling@2")
    assert await roll_back(registry) == "seedling@1"
    with pytest.raises(FailedPrecondition, match="generation 3 of alias 'flower' deleted it; choose another"):
        await roll_back(registry, 3)


async def test_an_alias_that_a_deployment_follows_is_not_deleted(registry):
    await registry.set_alias("flower", "seedling@1")
    for name in ("garden", "balcony"):
        await registry.deployments.create(name, "flower", 0)
    with pytest.raises(FailedPrecondition, match="deployment 'balcony', 'garden'; `anthesis undeploy balcony` before"):
        await registry.aliases.delete("flower", ADA)
    assert await points_to(registry) == "seedling@1"
    for name in ("garden", "balcony"):
        await registry.deployments.delete(name)
    await registry.aliases.delete("flower", ADA)


async def test_a_deployment_never_follows_an_alias_that_is_deleted_at_the_same_moment(registry):
    for number in range(8):
        name = f"flower-{number}"
        await registry.set_alias(name, "seedling@1")
        outcomes = await asyncio.gather(
            registry.deployments.create(name, name, 0), registry.aliases.delete(name, ADA), return_exceptions=True
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        assert [type(error) for error in refused] in ([NotFound], [FailedPrecondition])
    listed = (await registry.deployments.list_deployments(PageRequest())).rows
    aliases = {alias.name for alias in (await registry.aliases.list_aliases(PageRequest())).rows}
    assert {status.deployment.target for status in listed} == aliases


async def test_a_job_moves_its_alias_in_its_creators_name(registry):
    await registry.set_alias("bud", "seedling@1")
    job = await registry.submit(deploy_alias="bud")
    await registry.leases.acquire(job.id, "w1")
    await registry.leases.finish(job.id, 1, Succeeded(store_checkpoint(registry.artifacts).files))
    change, version = await registry.aliases.at("bud")
    assert (change.generation, change.kind, version.name) == (2, "JOB", "sprout@1")
    assert (change.principal, change.reason) == ("ada", f"made by {job.id}")


async def test_what_an_alias_pointed_to_at_any_past_time_can_be_answered(registry):
    created = registry.clock.now
    await registry.set_alias("flower", "seedling@1")
    registry.clock.advance(60)
    moved = registry.clock.now
    await registry.set_alias("flower", "seedling@2")
    registry.clock.advance(60)
    await registry.set_alias("flower", "seedling@1")
    assert await points_to(registry, created) == "seedling@1"
    assert await points_to(registry, moved) == "seedling@2"
    assert await points_to(registry, registry.clock.now) == "seedling@1"
    registry.clock.advance(-121)
    with pytest.raises(NotFound, match="did not exist at 2025"):
        await registry.aliases.at("flower", registry.clock.now)


async def test_a_clock_that_was_put_back_changes_no_answer_about_the_past(registry):
    """A change bears the time of the one before where the clock shows less: so the newest is never dated away."""
    await registry.set_alias("flower", "seedling@1")
    registry.clock.advance(30)
    between = registry.clock.now
    registry.clock.advance(30)
    moved = registry.clock.now
    await registry.set_alias("flower", "seedling@2")
    registry.clock.advance(-45)
    restarted = Aliases(registry.database, registry.clock)
    assert (await restarted.set("flower", "seedling@3", ADA)).update_time == moved
    assert await points_to(registry, between) == "seedling@1"
    assert await points_to(registry, moved) == "seedling@3"
    assert await points_to(registry) == "seedling@3"
    assert await history(registry) == [(n, "SET", f"seedling@{n}") for n in (3, 2, 1)]
