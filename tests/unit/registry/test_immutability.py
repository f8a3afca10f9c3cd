"""What a version is made of is changed by nobody, not even by plain SQL."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.registry.pages import PageRequest
from services.registry.search import VersionQuery
from services.registry.tables import ModelVersion

SAYS = "a version does not change"
COLUMNS = {
    "id": "id + 100",
    "name": "'seedling@9'",
    "model": "'weed'",
    "job_id": "'job-1'",
    "number": "9",
    "licence": "'mit'",
    "tokenizer_digest": "'x'",
    "files": "'[]'",
    "config_json": "'{}'",
    "parameters": "0",
    "size_bytes": "0",
    "parent": "'seedling@2'",
    "other_parents": "'[\"x\"]'",
    "datasets": "'[\"x\"]'",
    "source": "'job'",
    "project": "'lab'",
    "create_time": "'2000-01-01 00:00:00+00:00'",
}
STATES = ("state", "tags", "created_by", "delete_time", "deleted_by", "expire_time")  # and these do change
OTHERS = (
    "DELETE FROM model_versions WHERE number = 1",
    "UPDATE model_versions SET state = 'PURGED', files = '[]', size_bytes = 0 WHERE number = 1",  # never deleted
)
OWN = {
    "sqlite": (
        "INSERT OR REPLACE INTO model_versions SELECT * FROM model_versions WHERE number = 1",
        "INSERT OR REPLACE INTO model_versions SELECT * FROM (SELECT * FROM model_versions) WHERE name = 'seedling@1'",
    ),
    "postgresql": ("TRUNCATE model_versions CASCADE",),
}


async def versions(registry):
    page = await registry.versions.list_versions("", PageRequest(), VersionQuery(deleted=True))
    columns = (*COLUMNS, *STATES)
    return [{column: getattr(row, column) for column in columns} for row in page.rows]


async def execute(database, statement):
    async with database.write() as session:
        await session.execute(text(statement))


async def test_plain_sql_cannot_change_what_a_version_is_made_of(registry, database):
    await registry.add_version()
    await registry.add_version()
    before = await versions(registry)
    statements = [f"UPDATE model_versions SET {column} = {value} WHERE number = 1" for column, value in COLUMNS.items()]  # noqa: S608
    for statement in (*statements, *OTHERS, *OWN[database.engine.dialect.name]):
        with pytest.raises(DBAPIError, match=SAYS):
            await execute(database, statement)
        assert await versions(registry) == before


async def test_every_column_is_either_guarded_or_said_to_change():
    columns = {column.name for column in ModelVersion.__table__.columns}
    assert columns == {*COLUMNS, *STATES}


async def test_a_purged_version_stays_purged(registry, database):
    await registry.add_version()
    await registry.deletions.delete_version("seedling@1", "ada")
    await execute(database, "UPDATE model_versions SET state = 'PURGED', files = '[]', size_bytes = 0")
    for state in ("READY", "DELETED"):
        with pytest.raises(DBAPIError, match=SAYS):
            await execute(database, f"UPDATE model_versions SET state = '{state}'")  # noqa: S608


async def test_without_its_triggers_a_version_could_be_changed(registry, database):
    """What the tests above would see if a migration lost them."""
    await registry.add_version()
    on = "" if database.engine.dialect.name == "sqlite" else " ON model_versions"
    await execute(database, f"DROP TRIGGER model_versions_no_update{on}")
    await execute(database, "UPDATE model_versions SET licence = 'mit'")
    assert [row["licence"] for row in await versions(registry)] == ["mit"]
