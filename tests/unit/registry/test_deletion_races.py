"""Who refers to a version while it is being deleted: one of the two wins, whoever was first."""

import asyncio

import pytest

from services.common.errors import FailedPrecondition, NotFound
from services.registry import aliases, deletion, version_states
from services.registry.alias_changes import NewChange
from services.registry.aliases import Aliases
from services.registry.database import Database
from services.registry.deletion import Deletions
from services.registry.deployments import Deployments
from services.registry.jobs import Jobs, NewJob
from services.registry.versions import NewVersion, Versions
from tests.support.registry_data import store_checkpoint

PATIENCE_S = 0.3  # for what is expected to wait


async def move_an_alias(registry, database, spec):
    await Aliases(database).set("flower", "seedling@1", NewChange(principal="ada"))


async def roll_an_alias_back(registry, database, spec):
    await Aliases(database).roll_back("bud", 1, NewChange(principal="ada"))


async def deploy(registry, database, spec):
    await Deployments(database).create("web", "seedling@1", 1)


async def register_a_child(registry, database, spec):
    stored = store_checkpoint(registry.artifacts)
    new = NewVersion(model="child", parent="seedling@1", files=stored.files, tokenizer_digest=stored.tokenizer_digest)
    await Versions(database, registry.artifacts).create(new)


async def submit_a_job(registry, database, spec):
    await Jobs(database, registry.artifacts).create(NewJob(spec=spec, created_by="ada"))


MAKERS = (move_an_alias, roll_an_alias_back, deploy, register_a_child, submit_a_job)


@pytest.fixture
async def spec(registry):
    """Of a job on `seedling@1`, to which the alias `bud` pointed once; `seedling@2` is there, too."""
    spec = await registry.fine_tune_spec(base="seedling@1")
    await registry.add_version()
    await registry.set_alias("bud", "seedling@1")
    await registry.set_alias("bud", "seedling@2")
    return spec


@pytest.fixture
async def other(registry):
    """Connections of another process."""
    database = Database(registry.database.url)
    yield database
    await database.close()


async def dependents(registry):
    """What needs the version, deleted or not."""
    async with registry.database.read() as session:
        return await deletion._needed_by(session, "seedling@1")


async def delete_meanwhile(registry, other, make, spec, monkeypatch):
    """Delete; when the deletion has seen that nothing needs the version, and before it ends, `make` begins."""
    making = []
    look = deletion._needed_by

    async def look_and_wait(session, name):
        found = await look(session, name)
        making.append(asyncio.create_task(make(registry, other, spec)))
        await asyncio.wait(making, timeout=PATIENCE_S)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(deletion, "_needed_by", look_and_wait)
        await registry.deletions.delete_version("seedling@1", "ada")
    return await asyncio.gather(*making, return_exceptions=True)


@pytest.mark.parametrize("make", MAKERS)
async def test_who_comes_while_it_is_being_deleted_is_told_so(registry, other, make, spec, monkeypatch):
    [outcome] = await delete_meanwhile(registry, other, make, spec, monkeypatch)
    assert isinstance(outcome, NotFound)
    assert "was deleted at" in str(outcome)
    assert await dependents(registry) == []


async def test_the_planted_mistake_of_not_holding_it_leaves_an_alias_of_a_deleted_version(
    registry, other, spec, monkeypatch
):
    """On SQLite writers wait for each other anyway, and the name is looked up after the wait: there all is well."""

    async def look_only(session, name):
        return await session.scalar(version_states.select(version_states.ModelVersion).filter_by(name=name))

    monkeypatch.setattr(aliases, "hold", look_only)
    [outcome] = await delete_meanwhile(registry, other, move_an_alias, spec, monkeypatch)
    if registry.database.url.startswith("sqlite"):
        assert isinstance(outcome, NotFound)
    else:
        assert outcome is None
        assert await dependents(registry) == ["alias 'flower'"]


async def test_a_deletion_waits_for_who_came_first_and_is_refused(registry, other, spec, monkeypatch):
    deleting = []
    move = aliases.set_alias

    async def move_and_wait(*args):
        deleting.append(asyncio.create_task(Deletions(other).delete_version("seedling@1", "eve")))
        await asyncio.wait(deleting, timeout=PATIENCE_S)
        return await move(*args)

    monkeypatch.setattr(aliases, "set_alias", move_and_wait)
    await registry.set_alias("flower", "seedling@1")
    with pytest.raises(FailedPrecondition, match="needed by alias 'flower'"):
        await deleting[0]
    assert (await registry.aliases.resolve("flower")).name == "seedling@1"


async def test_of_movers_and_deleters_of_one_version_one_side_wins_each_round(registry):
    databases = [Database(registry.database.url) for _ in range(4)]

    async def attempt(number, name):
        try:
            if number % 2:
                await Aliases(databases[number]).set(f"flower-{number}", name, NewChange(principal="ada"))
            else:
                await Deletions(databases[number]).delete_version(name, "eve")
        except (NotFound, FailedPrecondition):
            return False
        return True

    for number in range(1, 5):
        await registry.add_version()
        won = await asyncio.gather(*(attempt(who, f"seedling@{number}") for who in range(4)))
        deleted, moved = won[0] + won[2], won[1] + won[3]
        assert (deleted, moved) in ((1, 0), (0, 2)), won
    for database in databases:
        await database.close()
