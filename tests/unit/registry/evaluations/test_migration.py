"""Revision 0007 with rows of before and after it: the way back is open to a release that measures nothing."""

import asyncio

from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import text

from services.registry.alias_changes import NewChange
from services.registry.catalogue import seed_catalogue
from services.registry.database import Database, alembic_config
from services.registry.evaluations.published import seed_published
from services.registry.job_specs import FineTuneSpec, spec_from_row
from services.registry.tables import Job

BEFORE = ScriptDirectory.from_config(alembic_config()).get_revision("0007").down_revision


async def migrate(database: Database, direction: str, revision: str) -> None:
    await asyncio.to_thread(getattr(command, direction), alembic_config(database.url), revision)


async def test_the_older_release_gets_its_jobs_and_aliases_without_what_it_cannot_read(measuring):
    database = measuring.registry.database
    await seed_catalogue(database)
    await seed_published(database)
    measures = await measuring.submit("seedling@1")
    trains = await measuring.registry.submit(spec=await measuring.registry.fine_tune_spec(evaluate_with="held-out"))
    await measuring.registry.set_alias("flower", "seedling@1")
    await measuring.set_gate()
    await measuring.registry.set_alias("flower", "seedling@2", override_gate=True, reason="new")
    await migrate(database, "downgrade", BEFORE)
    async with database.read() as session:
        jobs = (await session.execute(text("SELECT id FROM jobs"))).scalars().all()
        events = (await session.execute(text("SELECT DISTINCT job_id FROM job_events"))).scalars().all()
        changes = (await session.execute(text("SELECT version FROM alias_changes ORDER BY generation"))).scalars().all()
    assert jobs == events == [trains.id]
    assert measures.id not in jobs
    assert changes == ["seedling@1", "seedling@2"]
    await migrate(database, "upgrade", "head")
    async with database.read() as session:
        job = await session.get_one(Job, trains.id)
        overridden = (await session.execute(text("SELECT overridden FROM alias_changes"))).scalars().all()
    assert "evaluate_with" not in job.spec
    spec = spec_from_row(job.spec)
    assert isinstance(spec, FineTuneSpec)
    assert spec.evaluate_with == ""
    assert overridden == ["", ""]
    await seed_published(database)
    change = NewChange(principal="ada")
    with_gate_gone = await measuring.registry.aliases.set("flower", "seedling@1", change)
    assert with_gate_gone.generation == 3
    assert (await measuring.suites.get("xnli")).published
