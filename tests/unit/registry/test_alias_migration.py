"""Revision 0003 with rows of before and after it."""

import asyncio
from datetime import UTC, datetime

import pytest
from alembic import command
from sqlalchemy import text

from services.registry.alias_changes import NewChange
from services.registry.aliases import Aliases
from services.registry.database import Database, alembic_config
from services.registry.licences.builtin import seed_licences
from services.registry.pages import PageRequest
from services.registry.versions import NewVersion, Versions
from tests.support.registry_data import DATABASES, empty_database, store_checkpoint

ADA = NewChange(principal="ada")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture(params=DATABASES)
async def database(request, tmp_path):
    database = Database(await asyncio.to_thread(empty_database, request.param, tmp_path))
    yield database
    await database.close()


async def migrate(database, direction, revision):
    await asyncio.to_thread(getattr(command, direction), alembic_config(database.url), revision)


async def execute(database, statement, **values):
    async with database.write() as session:
        result = await session.execute(text(statement), values)
        return [tuple(row) for row in result] if result.returns_rows else []


async def add_versions(database, artifacts):
    await seed_licences(database)
    stored = store_checkpoint(artifacts)
    new = NewVersion(model="a", files=stored.files, tokenizer_digest=stored.tokenizer_digest, licence="mit")
    for _ in range(2):
        await Versions(database, artifacts).create(new)


async def test_changes_of_the_older_release_are_numbered_in_the_order_they_were_made(database, artifacts):
    await migrate(database, "upgrade", "head")
    await add_versions(database, artifacts)
    await migrate(database, "downgrade", "0002")
    for alias, version in (("flower", "a@1"), ("weed", "a@1"), ("flower", "a@2"), ("flower", "a@1")):
        change = "INSERT INTO alias_changes (alias, version, time) VALUES (:alias, :version, '2026-01-01 12:00:00')"
        await execute(database, change, alias=alias, version=version)  # all at once, as the clock had it
    for alias in ("flower", "weed"):
        row = "INSERT INTO aliases (name, version, update_time) VALUES (:alias, 'a@1', '2026-01-01 12:00:00')"
        await execute(database, row, alias=alias)
    await migrate(database, "upgrade", "head")
    aliases = Aliases(database)
    changes = (await aliases.list_changes("flower", PageRequest())).rows
    assert [(change.generation, change.version, change.kind, change.principal) for change in changes] == [
        (3, "a@1", "SET", ""),
        (2, "a@2", "SET", ""),
        (1, "a@1", "SET", ""),
    ]
    assert {alias.name: alias.generation for alias in (await aliases.list_aliases(PageRequest())).rows} == {
        "flower": 3,
        "weed": 1,
    }
    assert (await aliases.roll_back("flower", None, ADA)).version == "a@2"


async def test_the_older_release_gets_the_live_aliases_with_their_history(database, artifacts):
    await migrate(database, "upgrade", "head")
    await add_versions(database, artifacts)
    aliases = Aliases(database, lambda: NOON)
    for name, version in (("flower", "a@1"), ("weed", "a@2"), ("flower", "a@2")):
        await aliases.set(name, version, ADA)
    await aliases.delete("flower", ADA)
    await aliases.roll_back("flower", None, ADA)
    await aliases.delete("weed", ADA)
    await migrate(database, "downgrade", "0002")
    assert await execute(database, "SELECT name, version FROM aliases") == [("flower", "a@2")]
    changes = await execute(database, "SELECT alias, version FROM alias_changes ORDER BY id")
    assert changes == [("flower", "a@1"), ("flower", "a@2"), ("flower", "a@2")]
    await migrate(database, "upgrade", "head")
    assert (await aliases.list_changes("flower", PageRequest())).rows[0].time == NOON
    assert (await aliases.set("weed", "a@1", ADA)).generation == 1
