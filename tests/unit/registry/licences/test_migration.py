"""Versions of before get their licences in one case, and their files are under them; back, none of it is in the way."""

import asyncio
import json

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import text

from services.common.auth import Principal
from services.common.errors import FailedPrecondition
from services.registry.database import Database, alembic_config
from services.registry.licences.builtin import seed_licences
from services.registry.licences.service import Licences
from services.registry.versions import NewVersion, Versions
from tests.support.registry_data import DATABASES, empty_database, store_checkpoint

WEIGHTS, CONFIG = "sha256:" + "1" * 64, "sha256:" + "2" * 64
BEFORE = ScriptDirectory.from_config(alembic_config()).get_revision("0006").down_revision
FILES = [
    {"path": "config.json", "digest": CONFIG, "size_bytes": 1},
    {"path": "model.safetensors", "digest": WEIGHTS, "size_bytes": 1},
]
INSERT_MODEL = """INSERT INTO models (name, description, licence, languages, config_json, base_model, latest_version,
    in_catalogue, parameters, create_time) VALUES (:name, '', :licence, '[]', '{}', '', 1, false, 0, :time)"""
INSERT_VERSION = """INSERT INTO model_versions (name, model, number, licence, tokenizer_digest, files, config_json,
    parameters, size_bytes, datasets, source, create_time)
    VALUES (:version, :name, 1, :licence, '', :files, '{}', 0, 2, '[]', 'import', :time)"""


@pytest.fixture(params=DATABASES)
def url(request, tmp_path):
    return empty_database(request.param, tmp_path)


async def test_versions_of_before_are_under_their_licences_and_the_way_back_is_open(tmp_path, artifacts, url):
    await asyncio.to_thread(command.upgrade, alembic_config(url), BEFORE)
    database = Database(url)
    async with database.engine.begin() as connection:
        for name, licence in (("a", "BigScience-RAIL-1.0"), ("b", "Apache-2.0")):
            row = {"name": name, "version": f"{name}@1", "licence": licence, "files": json.dumps(FILES)}
            for insert in (INSERT_MODEL, INSERT_VERSION):
                used = {key: value for key, value in row.items() if f":{key}" in insert}
                await connection.execute(text(insert.replace(":time", "CURRENT_TIMESTAMP")), used)
    await asyncio.to_thread(command.upgrade, alembic_config(url), "0006")
    async with database.engine.connect() as connection:
        noted = (await connection.execute(text("SELECT digest, licence FROM licensed_files ORDER BY licence"))).all()
        licences = (await connection.execute(text("SELECT licence FROM models ORDER BY name"))).scalars().all()
    assert noted == [(WEIGHTS, "apache-2.0"), (WEIGHTS, "bigscience-rail-1.0")]
    assert licences == ["bigscience-rail-1.0", "apache-2.0"]
    await asyncio.to_thread(command.upgrade, alembic_config(url), "head")
    await seed_licences(database)
    with pytest.raises(FailedPrecondition, match=r"bigscience-rail-1\.0"):
        await Licences(database).check_download(Principal("k", "ada", "user"), WEIGHTS)

    stored = store_checkpoint(artifacts)
    new = NewVersion(model="c", licence="", parent="a", files=stored.files, tokenizer_digest=stored.tokenizer_digest)
    made = await Versions(database, artifacts).create(new)
    await asyncio.to_thread(command.downgrade, alembic_config(url), BEFORE)
    async with database.engine.connect() as connection:
        rows = (await connection.execute(text("SELECT files FROM model_versions ORDER BY id"))).scalars().all()
    files = [json.loads(row) if isinstance(row, str) else row for row in rows]
    assert {key for row in files for file in row for key in file} == {"path", "digest", "size_bytes"}
    await asyncio.to_thread(command.upgrade, alembic_config(url), "head")
    async with database.engine.connect() as connection:
        again = set((await connection.execute(text("SELECT digest FROM licensed_files"))).scalars())
    assert again == {WEIGHTS, *(file["digest"] for file in made.files if file["path"] == "model.safetensors")}
    await database.close()
