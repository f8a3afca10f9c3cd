"""Datasets of before become version 1 of their names, wherever they are named; on the way back nothing is lost."""

import asyncio
import json

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import text

from services.registry.database import Database, alembic_config
from services.registry.datasets import Datasets
from services.registry.job_specs import FineTuneSpec, ValidateDatasetSpec, spec_from_row
from services.registry.jobs import Jobs, NewJob
from tests.support.registry_data import DATABASES, empty_database, store_checkpoint, text_rows

BEFORE = ScriptDirectory.from_config(alembic_config()).get_revision("0011").down_revision
INSERT_DATASET = """INSERT INTO datasets (name, format, digest, num_rows, size_bytes, languages, create_time)
    VALUES (:name, 'TEXT', :digest, 3, 9, '[]', CURRENT_TIMESTAMP)"""
INSERT_JOB = """INSERT INTO jobs (id, spec, state, cancel_requested, created_by, deploy_alias, create_time, wake_time,
    attempts, lost_leases, fencing_token, last_sequence)
    VALUES ('job-1', :spec, 'PENDING', false, 'ada', '', CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, 0, 0, 0, 0)"""
INSERT_MODEL = """INSERT INTO models (name, description, licence, languages, config_json, base_model, latest_version,
    in_catalogue, parameters, create_time)
    VALUES ('m', '', 'mit', '[]', '{}', '', 1, false, 0, CURRENT_TIMESTAMP)"""
INSERT_VERSION = """INSERT INTO model_versions (name, model, number, licence, tokenizer_digest, files, config_json,
    parameters, size_bytes, datasets, source, create_time)
    VALUES ('m@1', 'm', 1, 'mit', '', '[]', '{}', 0, 2, '["udhr"]', 'import', CURRENT_TIMESTAMP)"""
SPEC = {
    "kind": "fine_tune",
    "output_model": "m",
    "base": "m@1",
    "datasets": ["udhr"],
    "options": {"steps": 1},
    "lora": None,
    "validation_datasets": ["held"],
}


@pytest.fixture(params=DATABASES)
def url(request, tmp_path):
    return empty_database(request.param, tmp_path)


async def migrate(url, direction, revision):
    await asyncio.to_thread(getattr(command, direction), alembic_config(url), revision)


async def read(database, query: str) -> list:
    async with database.engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(query))]


async def references(database) -> tuple[list[str], list[str], list[str]]:
    """What the job is trained on and validated with, and what the version was trained on."""
    query = "SELECT spec, datasets FROM jobs, model_versions WHERE jobs.id = 'job-1'"
    ((spec, datasets),) = await read(database, query)
    spec, datasets = (json.loads(value) if isinstance(value, str) else value for value in (spec, datasets))
    return spec["datasets"], spec["validation_datasets"], datasets


async def test_what_was_there_is_version_1_and_the_way_back_keeps_every_version(url, artifacts):
    await migrate(url, "upgrade", BEFORE)
    database = Database(url)
    digest = artifacts.write_bytes(text_rows())
    async with database.engine.begin() as connection:
        for name in ("udhr", "held"):
            await connection.execute(text(INSERT_DATASET), {"name": name, "digest": digest})
        await connection.execute(text(INSERT_JOB), {"spec": json.dumps(SPEC)})
        for query in (INSERT_MODEL, INSERT_VERSION):
            await connection.exec_driver_sql(query)
    await migrate(url, "upgrade", "0011")
    pinned = (["udhr@1"], ["held@1"], ["udhr@1"])
    listed = "SELECT name, dataset, number FROM datasets ORDER BY name"
    first = [("held@1", "held", 1), ("udhr@1", "udhr", 1)]
    assert await read(database, listed) == first
    assert await references(database) == pinned
    await migrate(url, "upgrade", "head")

    second = await Datasets(database, artifacts).create("udhr", "TEXT", artifacts.write_bytes(text_rows(5)), "ada")
    assert second.name == "udhr@2"
    report = ValidateDatasetSpec(dataset="udhr", tokenizer_digest=store_checkpoint(artifacts).tokenizer_digest)
    await Jobs(database, artifacts).create(NewJob(spec=report, created_by="ada"))
    await migrate(url, "downgrade", BEFORE)
    names = "SELECT name FROM datasets ORDER BY name"
    assert await read(database, names) == [("held",), ("udhr",), ("udhr@2",)]
    assert await references(database) == (["udhr"], ["held"], ["udhr"])
    assert await read(database, "SELECT id FROM jobs") == [("job-1",)]  # reports are unknown there
    assert await read(database, "SELECT job_id FROM outbox") == []

    await migrate(url, "upgrade", "head")
    assert await read(database, listed) == [*first, ("udhr@2", "udhr", 2)]
    assert await references(database) == pinned
    spec = spec_from_row((await Jobs(database, artifacts).get("job-1")).spec)
    assert isinstance(spec, FineTuneSpec)
    assert (await Datasets(database, artifacts).get("udhr")).num_rows == 5
    await database.close()
