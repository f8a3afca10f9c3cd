"""No statement of a project's call sees or changes another project's row, whatever the table."""

import re
from collections.abc import Mapping

import pytest
from sqlalchemy import Text, case, cast, delete, exists, func, inspect, select, text, true, union_all, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import aliased, load_only

from services.common.errors import NotFound, PermissionDenied
from services.registry.cards.service import Cards
from services.registry.database import Database
from services.registry.evaluations.gates import Gates, NewGate
from services.registry.evaluations.service import Evaluations, NewEvaluation, NewResult
from services.registry.evaluations.suites import Metric, NewSuite, Suites
from services.registry.keys import Keys
from services.registry.leases import Succeeded
from services.registry.licences.builtin import BUILTIN
from services.registry.projects import session as scoped
from services.registry.projects.mentions import mentioned_tables
from services.registry.projects.scope import ProjectPrivate
from services.registry.projects.service import Projects
from services.registry.projects.session import OWNED_BY, scoped_tables
from services.registry.projects.tables import Project
from services.registry.projects.usage import UsageLine, UsageLog
from services.registry.tables import AuditEntry, Base, Dataset, File, JobLogPart, Webhook, WebhookDelivery
from tests.support.projects import calling_for
from tests.support.registry_data import store_checkpoint, text_rows

# Tables of which every project's call sees all, and why that gives nothing away.
UNSCOPED: Mapping[str, str] = {
    "licences": "everybody's",
    "licensed_files": "asked by digest, after that was found to be the project's to read",
    "outbox": "the relay's",
    "state_changes": "the relay's",
    "project_artifacts": "asked by digest and project",
    "usage_batches": "ids that gateways drew",
    "uploads": "asked by principal, whose name begins with the project's",
    "workers": "the platform's; asked by version",
}
PROJECTS = ("lab", "other", "")
LICENCE = BUILTIN[0]


async def fill(registry, database, project):
    """A row in every table of projects, made by calls for `project`."""
    prefix = project or "shared"
    if project:
        await Projects(database).create(project)
    used = UsageLine(
        project=project,
        principal="ada",
        model_version="seedling@1",
        language="",
        requests=1,
        prompt_tokens=1,
        completion_tokens=1,
    )
    await UsageLog(database).report(prefix, [used], [])
    with calling_for(project) as caller:
        await Keys(database, b"pepper").create("ada", "user", project=project)
        await registry.add_version(f"{prefix}-model")
        await registry.add_dataset(f"{prefix}-rows")
        spec = await registry.pretrain_spec(output_model=f"{prefix}-sprout", datasets=[f"{prefix}-rows"])
        job = await registry.submit(spec=spec, deploy_alias=f"{prefix}-alias")
        await registry.licences.accept(caller, LICENCE.id, LICENCE.digest)
    async with database.write() as session:
        now = registry.clock()
        session.add(JobLogPart(job_id=job.id, start=0, text="line"))
        webhook = {"url": "https://example.org", "event_types": [], "created_by": "ada", "create_time": now}
        session.add(Webhook(id=f"webhook-{prefix}", project=project, **webhook))
        await session.flush()
        delivery = {"webhook_id": f"webhook-{prefix}", "job_id": job.id, "sequence": 1, "event_type": "job.succeeded"}
        session.add(WebhookDelivery(id=f"delivery-{prefix}", body="{}", create_time=now, **delivery))
        file = {"filename": "a", "purpose": "fine-tune", "digest": "", "size_bytes": 1, "format": "", "num_rows": 0}
        file |= {"longest_row_bytes": 0, "created_by": "ada", "create_time": now}
        session.add(File(id=f"file-{prefix}", project=project, **file))
    await registry.leases.acquire(job.id, "w1")
    await registry.leases.finish(job.id, 1, Succeeded(store_checkpoint(registry.artifacts).files))
    with calling_for(project):
        await measure(registry, database, prefix)


async def measure(registry, database, prefix):
    held_out = text_rows(3) + f'{{"text": "{prefix}"}}\n'.encode()
    await registry.datasets.create(f"{prefix}-held-out", "TEXT", registry.artifacts.write_bytes(held_out))
    suites = Suites(database, registry.artifacts)
    suite = NewSuite(family=f"{prefix}-suite", kind="BITS_PER_BYTE", datasets=[f"{prefix}-held-out"], created_by="ada")
    await suites.create(suite)
    metrics = [Metric(name="accuracy", higher_is_better=True)]
    quiz = NewSuite(family=f"{prefix}-quiz", kind="BENCHMARK", task="quiz", metrics=metrics, created_by="ada")
    await suites.create(quiz)
    results = [NewResult(language="fr", metric="accuracy", value=0.5)]
    version = f"{prefix}-model@1"
    new = NewEvaluation(version=version, suite=f"{prefix}-quiz", results=results, created_by="ada")
    await Evaluations(database).record(new)
    gate = NewGate(alias=f"{prefix}-alias", suite=f"{prefix}-suite", max_regression_percent=1, created_by="ada")
    await Gates(database).set(gate)
    for name in (f"{prefix}-model", version):
        await Cards(database).update(name, "## Notes\n\nOurs.\n", "ada")


@pytest.fixture
async def filled(registry, database: Database) -> Database:
    for project in PROJECTS[::-1]:  # shared rows first: the shorthands of `registry` share the dataset "udhr"
        await fill(registry, database, project)
    return database


async def owners(database: Database, table) -> dict[tuple, str]:
    """Primary key -> project of every row, as the platform sees them."""
    async with database.read() as session:
        rows = [(inspect(row).identity, row) for row in await session.scalars(select(table))]
        if table is Project:
            return {key: row.name for key, row in rows}
        if table in OWNED_BY:
            column, *keys = OWNED_BY[table]
            parents = {
                getattr(row, key.key): row.project for key in keys for row in await session.scalars(select(key.class_))
            }
            return {key: parents[getattr(row, column.key)] for key, row in rows}
        return {key: row.project for key, row in rows}


def visible(table, project) -> set[str]:
    table = OWNED_BY[table][1].class_ if table in OWNED_BY else table
    private = table is Project or issubclass(table, ProjectPrivate)
    return {project} if private else {project, ""}


def is_key(table, key):
    columns = inspect(table).primary_key
    return [getattr(table, column.key) == value for column, value in zip(columns, key, strict=True)]


def test_every_table_is_scoped_or_is_excused():
    names = {mapper.class_.__tablename__ for mapper in Base.registry.mappers}
    assert names == {table.__tablename__ for table in scoped_tables()} | set(UNSCOPED), (
        "a new table gets the mixin ProjectScoped, or an entry in OWNED_BY or UNSCOPED"
    )


async def test_every_statement_on_every_table_sees_and_changes_what_the_project_may(filled):
    for table in scoped_tables():
        rows = await owners(filled, table)
        assert {"lab", "other"} <= set(rows.values()), table
        may_see = {key for key, owner in rows.items() if owner in visible(table, "lab")}
        columns = [getattr(table, column.key) for column in inspect(table).primary_key]
        also = aliased(table)
        with calling_for("lab"):
            async with filled.read() as session:
                seen = {inspect(row).identity for row in await session.scalars(select(table))}
                by_column = {tuple(row) for row in await session.execute(select(*columns))}
                through_alias = {inspect(row).identity for row in await session.scalars(select(also))}
                joined = select(func.count()).select_from(table).join(also, *_same(table, also, columns))
                count = await session.scalar(select(func.count()).select_from(table))
                assert seen == by_column == through_alias == may_see, table
                assert count == await session.scalar(joined) == len(may_see), table
            for key, owner in rows.items():
                async with filled.read() as session:
                    found = await session.get(table, key if len(key) > 1 else key[0])
                    assert (found is not None) == (key in may_see), (table, key)
                if table is AuditEntry:  # the database itself refuses
                    continue
                await check_change(filled, table, key, changes=int(owner == "lab"))


def _same(table, also, columns):
    condition = [getattr(table, column.key) == getattr(also, column.key) for column in columns]
    return [condition[0] if len(condition) == 1 else condition[0] & condition[1]]


async def check_change(database, table, key, changes):
    first = inspect(table).primary_key[0].key
    async with database.write() as session:
        same = update(table).where(*is_key(table, key)).values({first: getattr(table, first)})
        assert (await session.execute(same)).rowcount == changes, (table, key)
    if not changes:  # one's own may be referred to
        async with database.write() as session:
            assert (await session.execute(delete(table).where(*is_key(table, key)))).rowcount == 0, (table, key)


async def test_a_loaded_row_that_is_shared_is_not_changed_nor_taken_nor_deleted(filled):
    for table in scoped_tables():
        shared = [key for key, owner in (await owners(filled, table)).items() if owner == ""]
        if table in OWNED_BY or issubclass(table, ProjectPrivate) or not shared:
            continue
        with calling_for("lab"):
            for change in ("create_time" if hasattr(table, "create_time") else "update_time", "project"):
                with pytest.raises(PermissionDenied, match="is not of project 'lab': it is shared"):
                    async with filled.write() as session:
                        row = await session.get_one(table, shared[0] if len(shared[0]) > 1 else shared[0][0])
                        setattr(row, change, "lab" if change == "project" else row_time(row, change))
            with pytest.raises(PermissionDenied, match="it is shared"):
                async with filled.write() as session:
                    await session.delete(await session.get_one(table, shared[0][0]))


def row_time(row, name):
    return getattr(row, name).replace(year=1999)


def forms(table):
    """Statements that mention `table`, each in a way of its own, most beside another table."""
    key = getattr(table, inspect(table).primary_key[0].key)
    other, name = (Dataset, Dataset.name) if table is AuditEntry else (AuditEntry, AuditEntry.resource)
    also, outer = aliased(table), select(name)
    of_it = select(key).cte("of_it")
    numbers = select(key).cte("numbers", recursive=True)
    numbers = numbers.union(select(key).join(numbers, numbers.c[0] == key))
    yield "plain", select(table)
    yield "column", select(key)
    yield "alias", select(also)
    yield "in WHERE alone", outer.where(name == cast(key, Text))
    yield "join", outer.join(table, name == cast(key, Text))
    yield "outer join of an alias", outer.outerjoin(also, also.__table__.c[0].is_not(None))
    yield "join before the columns were chosen", select(key).join(other, true()).with_only_columns(name)
    yield "subquery in FROM", outer.join(select(key).subquery(), true())
    yield "alias of a subquery", outer.join(aliased(table, select(table).subquery()), true())
    yield "IN", outer.where(name.in_(select(cast(key, Text))))
    yield "EXISTS", outer.where(select(key).where(cast(key, Text) == name).exists())
    yield "not EXISTS of an alias", outer.where(~exists().where(inspect(also).selectable.c[0].is_not(None)))
    yield "scalar subquery", select(name, select(func.count(key)).scalar_subquery())
    yield "order by a subquery", outer.order_by(select(func.count(key)).scalar_subquery())
    yield "having", outer.group_by(name).having(select(func.count(key)).scalar_subquery() > 0)
    yield "window", select(func.count(key).over(partition_by=key), name)
    yield "case", select(case((key.is_(None), 1), else_=2), name)
    yield "lateral", outer.join(select(key).lateral(), true())
    yield "CTE", outer.where(name.in_(select(cast(of_it.c[0], Text))))
    yield "CTE in a CTE", outer.join(select(of_it.c[0]).cte("next"), true())
    yield "CTE beside", outer.add_cte(of_it)
    yield "recursive CTE", outer.join(numbers, true())
    yield "union", union_all(select(cast(key, Text)), select(name))
    yield "union in FROM", outer.join(union_all(select(key), select(key)).subquery(), true())
    yield "update", update(other).where(name.in_(select(cast(key, Text)))).values({name: ""})
    yield "update to a subquery", update(other).values({name: select(func.max(cast(key, Text))).scalar_subquery()})
    yield "update from", update(other).where(name == cast(key, Text)).values({name: ""})
    yield "delete", delete(other).where(name.in_(select(cast(key, Text))))
    yield "options", select(table).options(load_only(key))
    yield "text", select(table).where(text("1 = 1"))
    yield "from text", select(table).from_statement(text("SELECT 1"))


def test_a_statement_in_whatever_form_is_limited_as_if_every_table_were():
    """The limits of the tables that it mentions give the same SQL as those of all tables."""
    for table in scoped_tables():
        for form, statement in forms(table):
            names = mentioned_tables(statement)
            assert names is None or table.__tablename__ in names, (table, form)
            for changes in (False, True):
                limited = statement.options(*scoped.limits("lab", names, changes=changes))
                every = statement.options(*scoped.limits("lab", None, changes=changes))
                assert _sql(limited) == _sql(every), (table, form)


def _sql(statement) -> str:
    """Without the numbers of parameters, and without the same limit twice: among all, an owner's meets its own."""
    sql = str(statement.compile(dialect=postgresql.dialect(), compile_kwargs={"render_postcompile": True}))
    return re.sub(r"(\w+\.project IN \([^()]*\))( AND \1)+", r"\1", re.sub(r"%\(\w+\)s", "?", sql))


def test_only_what_a_statement_mentions_is_limited():
    """Each limit is paid for by every statement, so that one on all tables would be seen in the registry's speed."""
    assert mentioned_tables(select(AuditEntry)) == {"audit_entries"}
    assert len(scoped.limits("lab", mentioned_tables(select(AuditEntry)), changes=False)) == 1
    assert len(scoped.limits("lab", None, changes=False)) == len(scoped_tables())


def test_no_table_has_relationships_by_which_a_statement_would_read_what_it_does_not_mention():
    """With them the limits of all tables hold (session.py), which nothing here shows to be enough."""
    assert [mapper for mapper in Base.registry.mappers if mapper.relationships] == []


async def test_without_the_limits_another_projects_rows_would_be_seen(registry, database, monkeypatch):
    """The planted mistake: what the tests here would see if a session did not add them."""
    with calling_for("other"):
        await registry.add_version("theirs")
    with calling_for("lab"):
        with pytest.raises(NotFound):
            await registry.models.get("theirs")
        monkeypatch.setattr(scoped, "limits", lambda project, names, changes: ())
        assert (await registry.models.get("theirs")).project == "other"


async def test_the_database_still_refuses_to_change_the_log(filled):
    with pytest.raises(DBAPIError, match="append-only"):
        async with filled.write() as session:
            await session.execute(update(AuditEntry).values(project="lab"))
