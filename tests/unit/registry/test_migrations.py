import asyncio

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Integer, inspect, select, text

from services.common.auth import Principal
from services.registry.alias_changes import NewChange
from services.registry.aliases import Aliases
from services.registry.cards.service import Cards
from services.registry.catalogue import seed_catalogue
from services.registry.database import Database, alembic_config, open_engine
from services.registry.datasets import Datasets
from services.registry.deployments import Deployments
from services.registry.evaluations.gates import Gates, NewGate
from services.registry.evaluations.harness import LM_EVAL, HarnessTask
from services.registry.evaluations.published import seed_published
from services.registry.evaluations.suites import BITS_PER_BYTE, NewSuite, Suites
from services.registry.files import FINE_TUNE, Files, NewFile
from services.registry.job_specs import PretrainSpec, TrainOptions
from services.registry.jobs import Jobs, NewJob
from services.registry.keys import Keys
from services.registry.leases import Leases, Printed, Succeeded
from services.registry.licences.builtin import BUILTIN, seed_licences
from services.registry.licences.service import Licences
from services.registry.projects.service import Projects
from services.registry.projects.usage import UsageLine, UsageLog
from services.registry.tables import Base
from services.registry.uploads import Uploads
from services.registry.webhooks.addresses import PUBLIC_ONLY
from services.registry.webhooks.outbox import write_deliveries
from services.registry.webhooks.service import Webhooks
from tests.support.registry_data import DATABASES, empty_database, store_checkpoint, text_rows

REVISIONS = [script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()][::-1]

USED = UsageLine(
    project="lab",
    principal="lab/ada",
    model_version="seedling@1",
    language="fr",
    requests=1,
    prompt_tokens=2,
    completion_tokens=3,
)


@pytest.fixture(params=DATABASES)
def url(request, tmp_path):
    return empty_database(request.param, tmp_path)


async def migrate(url, direction, revision):
    await asyncio.to_thread(getattr(command, direction), alembic_config(url), revision)


async def fill(database, artifacts):
    """A row in every table."""
    await seed_catalogue(database)
    await seed_licences(database)
    await Licences(database).accept(Principal("key", "ada", "user"), BUILTIN[0].id, BUILTIN[0].digest)
    await Projects(database).create("lab")
    await UsageLog(database).report("batch", [USED], [])
    await Keys(database, b"pepper").create("ada", "user")
    await Datasets(database, artifacts).create("udhr", "TEXT", artifacts.write_bytes(text_rows()))
    rows = artifacts.write_bytes(text_rows())
    await Files(database, artifacts).create(
        NewFile(filename="rows.jsonl", purpose=FINE_TUNE, digest=rows, created_by="ada")
    )
    stored = store_checkpoint(artifacts)
    spec = PretrainSpec(
        output_model="sprout",
        tokenizer_digest=stored.tokenizer_digest,
        datasets=["udhr"],
        config='{"model_type": "bloom", "hidden_size": 12, "n_layer": 2, "n_head": 3, "vocab_size": 300}',
        options=TrainOptions(steps=1),
    )
    await Webhooks(database, b"pepper", PUBLIC_ONLY).create(Principal("key", "ada", "trainer"), "https://1.1.1.1", [])
    job = await Jobs(database, artifacts).create(NewJob(spec=spec, created_by="ada", deploy_alias="bud"))
    await write_deliveries(database, job.create_time)
    leases = Leases(database, artifacts)
    await leases.acquire(job.id, "w1")
    await leases.renew(job.id, 1, printed=Printed(0, "a line\n"))
    await leases.finish(job.id, 1, Succeeded(stored.files))
    await Aliases(database).set("flower", "bud", NewChange(principal="ada"))
    await seed_published(database)
    await Suites(database, artifacts).create(
        NewSuite(family="garden", kind=BITS_PER_BYTE, datasets=["udhr"], created_by="ada")
    )
    await Suites(database, artifacts).create(
        NewSuite(family="quiz", kind=LM_EVAL, tasks=[HarnessTask(name="xcopa_et")], created_by="ada")
    )
    await Gates(database).set(NewGate(alias="flower", suite="garden", max_regression_percent=1.0, created_by="ada"))
    await Deployments(database).heartbeat("w1", "a:1", "cpu", [])
    await Uploads(database, artifacts).begin("ada", "sha256:" + "0" * 64, 1)
    await Cards(database).update("sprout", "For gardens.", "ada")


async def row_counts(database):
    async with database.read() as session:
        return {table.name: len(list(await session.execute(select(table)))) for table in Base.metadata.sorted_tables}


async def test_every_revision_goes_back_and_forth_with_rows_in_every_table(url, artifacts):
    await migrate(url, "upgrade", "head")
    database = Database(url)
    await fill(database, artifacts)
    assert 0 not in (await row_counts(database)).values()
    for revision in REVISIONS[::-1]:
        await migrate(url, "downgrade", f"{revision}-1" if revision != REVISIONS[0] else "base")
        await migrate(url, "upgrade", revision)
        await migrate(url, "downgrade", f"{revision}-1" if revision != REVISIONS[0] else "base")
    async with database.engine.connect() as connection:
        tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    assert tables == ["alembic_version"]
    await migrate(url, "upgrade", "head")
    await fill(database, artifacts)
    assert 0 not in (await row_counts(database)).values()
    await database.close()


async def test_the_newest_revision_is_what_the_tables_say(url):
    await migrate(url, "upgrade", "head")
    database = Database(url)
    async with database.engine.connect() as connection:
        difference = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), Base.metadata)
        )
    assert difference == []
    await database.check_revision()
    await database.close()


async def test_a_database_at_another_revision_is_refused_with_the_remedy(url):
    database = Database(url)
    with pytest.raises(RuntimeError, match=r"at revision None.*run `python -m services\.registry\.bootstrap`"):
        await database.check_revision()
    await database.close()


async def test_rows_survive_a_migration_that_copies_their_table(url, artifacts):
    """SQLite changes a column by copying the table: foreign keys must neither stop it nor lose rows (see env.py)."""
    await migrate(url, "upgrade", "head")
    database = Database(url)
    await fill(database, artifacts)
    before = await row_counts(database)
    engine = open_engine(url, sqlite_foreign_keys=False)
    async with engine.begin() as connection:
        await connection.run_sync(add_and_drop_a_column)
    await engine.dispose()
    assert await row_counts(database) == before
    async with database.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            assert (await connection.execute(text("PRAGMA foreign_key_check"))).all() == []
    await database.close()


async def test_nobodys_key_may_less_after_0005_and_none_may_more_when_it_is_taken_back(url):
    await migrate(url, "upgrade", "0005")
    await migrate(url, "downgrade", "0005-1")
    database = Database(url)

    async def add(name, role, **more):
        values = {"id": name, "principal": "a", "role": role, "digest": name} | more
        columns, literals = ", ".join(values), ", ".join(f"'{value}'" for value in values.values())
        query = f"INSERT INTO api_keys (create_time, {columns}) VALUES (CURRENT_TIMESTAMP, {literals})"  # noqa: S608
        async with database.engine.begin() as connection:
            await connection.exec_driver_sql(query)

    async def keys():
        async with database.read() as session:
            rows = await session.execute(text("SELECT id, role, revoke_time FROM api_keys"))
            return {row.id: (row.role, row.revoke_time is not None) for row in rows}

    for role in ("user", "admin", "service"):
        await add(f"old-{role}", role)
    await migrate(url, "upgrade", "0005")
    old = {"old-user": ("trainer", False), "old-admin": ("admin", False), "old-service": ("service", False)}
    assert await keys() == old
    for role in ("viewer", "user", "trainer"):
        await add(role, role)
    await add("scoped", "admin", scopes='["read"]')
    await add("ends", "admin", expire_time="2100-01-01 00:00:00+00:00")
    await migrate(url, "downgrade", "0005-1")
    assert await keys() == {
        "old-user": ("user", False),
        "old-admin": ("admin", False),
        "old-service": ("service", False),
        "trainer": ("user", False),
        "viewer": ("user", True),
        "user": ("user", True),
        "scoped": ("admin", True),
        "ends": ("admin", True),
    }
    await migrate(url, "upgrade", "0005")
    assert (await keys())["viewer"] == ("trainer", True)  # revoked it stays
    await database.close()


def add_and_drop_a_column(connection):
    operations = Operations(MigrationContext.configure(connection, opts={"render_as_batch": True}))
    with operations.batch_alter_table("jobs") as batch:
        batch.add_column(Column("colour", Integer(), nullable=False, server_default="0"))
    with operations.batch_alter_table("jobs") as batch:
        batch.drop_column("colour")
