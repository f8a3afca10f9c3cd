"""Rows of before revision 0014 and after it is taken back."""

import asyncio
import json

import pytest
from alembic import command
from sqlalchemy import text

from services.registry.catalogue import seed_catalogue
from services.registry.database import Database, alembic_config
from services.registry.deletion import Deletions
from services.registry.models import Models
from services.registry.pages import PageRequest
from services.registry.search import ModelQuery
from tests.support.registry_data import DATABASES, empty_database

INSERT_MODEL = """INSERT INTO models (name, description, licence, languages, config_json, base_model, latest_version,
    in_catalogue, parameters, create_time)
    VALUES ('seedling', 'A TULIP', 'mit', '[]', '{}', '', 2, false, 0, CURRENT_TIMESTAMP)"""
INSERT_VERSION = """INSERT INTO model_versions (name, model, number, licence, tokenizer_digest, files, config_json,
    parameters, size_bytes, datasets, source, create_time)
    VALUES (:name, 'seedling', :number, 'mit', '', '[]', '{}', 0, 0, '[]', 'import', CURRENT_TIMESTAMP)"""
INSERT_JOB = """INSERT INTO jobs (id, spec, state, cancel_requested, created_by, deploy_alias, create_time, wake_time,
    queue_time, attempts, lost_leases, fencing_token, last_sequence)
    VALUES ('job-1', :spec, 'PENDING', false, 'ada', '', CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP,
    0, 0, 0, 0)"""
SPEC = {"kind": "fine_tune", "output_model": "sprout", "base": "seedling@1", "datasets": ["udhr", "tasks"]}


@pytest.fixture(params=DATABASES)
def url(request, tmp_path):
    return empty_database(request.param, tmp_path)


async def migrate(url, direction, revision):
    await asyncio.to_thread(getattr(command, direction), alembic_config(url), revision)


async def test_what_was_there_is_found_and_can_be_deleted_and_the_way_back_is_open(url):
    await migrate(url, "upgrade", "0014")
    await migrate(url, "downgrade", "0014-1")
    database = Database(url)
    async with database.engine.begin() as connection:
        await connection.execute(text(INSERT_MODEL))
        for number in (1, 2):
            await connection.execute(text(INSERT_VERSION), {"name": f"seedling@{number}", "number": number})
        await connection.execute(text(INSERT_JOB), {"spec": json.dumps(SPEC)})
    await migrate(url, "upgrade", "head")
    async with database.engine.connect() as connection:
        job = (await connection.execute(text("SELECT output_model, base FROM jobs"))).one()
        datasets = await connection.execute(text("SELECT dataset FROM job_datasets ORDER BY dataset"))
        assert (tuple(job), [row.dataset for row in datasets]) == (("sprout", "seedling@1"), ["tasks", "udhr"])
    await seed_catalogue(database)
    found = await Models(database).list_models(PageRequest(), ModelQuery(text="tulip"))
    assert [row.name for row in found.rows] == ["seedling"]
    await Deletions(database).delete_version("seedling@2", "ada")
    assert (await Models(database).get("seedling")).latest_version == 1

    await migrate(url, "downgrade", "0014-1")
    async with database.engine.connect() as connection:  # there the number counts versions
        assert (
            await connection.execute(text("SELECT latest_version FROM models WHERE name = 'seedling'"))
        ).scalar() == 2
    await migrate(url, "upgrade", "head")
    await database.close()
