"""What there is becomes shared, its artifacts readable; on the way back no project's key comes to see everything."""

import asyncio
import json

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.registry.audit import Audit
from services.registry.database import Database, alembic_config
from services.registry.keys import Keys
from services.registry.models import Models
from services.registry.pages import PageRequest
from services.registry.projects.artifacts import may_read
from services.registry.projects.service import Projects
from tests.support.projects import calling_for
from tests.support.registry_data import DATABASES, empty_database

WEIGHTS, TOKENIZER, ROWS = ("sha256:" + digit * 64 for digit in "123")
BEFORE = ScriptDirectory.from_config(alembic_config()).get_revision("0013").down_revision
FILES = json.dumps([{"path": "model.safetensors", "digest": WEIGHTS, "size_bytes": 7}])
INSERTS = (
    """INSERT INTO models (name, description, licence, languages, config_json, base_model, latest_version, in_catalogue,
        parameters, create_time) VALUES ('a', '', 'mit', '[]', '{}', '', 1, false, 0, CURRENT_TIMESTAMP)""",
    f"""INSERT INTO model_versions (name, model, number, licence, tokenizer_digest, files, config_json, parameters,
        size_bytes, datasets, other_parents, source, create_time) VALUES ('a@1', 'a', 1, 'mit', '{TOKENIZER}',
        '{FILES}', '{{}}', 0, 7, '[]', '[]', 'import', CURRENT_TIMESTAMP)""",  # noqa: S608
    f"""INSERT INTO datasets (name, dataset, number, created_by, format, digest, num_rows, size_bytes, languages,
        create_time) VALUES ('rows@1', 'rows', 1, '', 'TEXT', '{ROWS}', 1, 9, '[]', CURRENT_TIMESTAMP)""",  # noqa: S608
    """INSERT INTO audit_entries (time, principal, key_id, action, resource, outcome, value)
        VALUES (CURRENT_TIMESTAMP, 'ada', '', '', 'alias/a', 'OK', '')""",
)


@pytest.fixture(params=DATABASES)
def url(request, tmp_path):
    return empty_database(request.param, tmp_path)


async def migrate(url, direction, revision):
    await asyncio.to_thread(getattr(command, direction), alembic_config(url), revision)


async def refuse_to_change_the_log(database):
    with pytest.raises(DBAPIError, match="append-only"):
        async with database.write() as session:
            await session.execute(text("UPDATE audit_entries SET principal = 'eve'"))


async def test_what_was_there_is_shared_and_a_projects_key_ends_on_the_way_back(url):
    await migrate(url, "upgrade", BEFORE)
    database = Database(url)
    async with database.engine.begin() as connection:
        for statement in INSERTS:
            await connection.exec_driver_sql(statement)
    await migrate(url, "upgrade", "head")
    await Projects(database).create("lab")
    keys = Keys(database, b"pepper")
    platforms, _ = await keys.create("root", "admin")
    projects_key, _ = await keys.create("eve", "admin", project="lab")
    with calling_for("lab"):
        assert [row.name for row in (await Models(database).list_models(PageRequest())).rows] == ["a"]
        async with database.read() as session:
            assert await may_read(session, [WEIGHTS, TOKENIZER, ROWS])
            assert not await may_read(session, ["sha256:" + "4" * 64])
    await refuse_to_change_the_log(database)
    await migrate(url, "downgrade", BEFORE)
    await refuse_to_change_the_log(database)
    async with database.engine.connect() as connection:
        rows = await connection.execute(text("SELECT id, revoke_time FROM api_keys"))
        assert {row.id: row.revoke_time is not None for row in rows} == {platforms.id: False, projects_key.id: True}
    await migrate(url, "upgrade", "head")
    await Audit(database).append("alias/b")
    await refuse_to_change_the_log(database)
    await database.close()
