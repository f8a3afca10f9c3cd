"""The way back from jobs that make what an older release does not know."""

import asyncio
import json

import pytest
from alembic import command
from sqlalchemy import text

from services.registry.checkpoints import File
from services.registry.database import Database, alembic_config
from services.registry.datasets import Datasets
from services.registry.job_specs import (
    CleanCorpusSpec,
    ImportModelSpec,
    PretrainSpec,
    TrainTokenizerSpec,
    ValidateDatasetSpec,
    spec_from_row,
)
from services.registry.jobs import Jobs, NewJob
from services.registry.leases import Leases, Succeeded
from services.registry.licences.builtin import seed_licences
from tests.support.registry_data import DATABASES, empty_database, store_checkpoint, text_rows


@pytest.mark.parametrize("backend", DATABASES)
async def test_such_jobs_go_but_for_an_import_whose_version_is_there(backend, artifacts, tmp_path):
    url = empty_database(backend, tmp_path)
    await asyncio.to_thread(command.upgrade, alembic_config(url), "head")
    database = Database(url)
    await seed_licences(database)
    await Datasets(database, artifacts).create("udhr", "TEXT", artifacts.write_bytes(text_rows()))
    stored = store_checkpoint(artifacts)

    async def submit(spec):
        return (await Jobs(database, artifacts).create(NewJob(spec=spec, created_by="ada"))).id

    await submit(TrainTokenizerSpec(datasets=["udhr"], vocab_size=600))
    await submit(CleanCorpusSpec(datasets=["udhr"], output_dataset="clean"))
    await submit(ImportModelSpec(model="lab/waits", licence="mit"))
    imported = await submit(ImportModelSpec(model="lab/tiny", licence="mit"))
    report = await submit(ValidateDatasetSpec(dataset="udhr", tokenizer_digest=stored.tokenizer_digest))
    leases = Leases(database, artifacts)
    await leases.acquire(imported, "t")
    files = (*stored.files, File(path="tokenizer.json", digest=stored.tokenizer_digest))
    await leases.finish(imported, 1, Succeeded(files))

    await asyncio.to_thread(command.downgrade, alembic_config(url), "0014")
    async with database.engine.connect() as connection:
        specs = {row.id: row.spec for row in await connection.execute(text("SELECT id, spec FROM jobs"))}
        events = set((await connection.execute(text("SELECT DISTINCT job_id FROM job_events"))).scalars())
    assert specs.keys() == events == {imported, report}
    known = specs[imported] if isinstance(specs[imported], dict) else json.loads(specs[imported])
    assert spec_from_row(known) == PretrainSpec(
        output_model="lab/tiny", tokenizer_digest="", datasets=[], config="", licence="mit"
    )
    await asyncio.to_thread(command.upgrade, alembic_config(url), "head")
    await database.close()
