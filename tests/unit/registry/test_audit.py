"""The audit log in the database: written with the change, never changed, found again."""

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from services.common.auth import Call, Principal, set_call
from services.common.errors import AlreadyExists, InvalidArgument, NotFound
from services.registry.audit import Audit, AuditQuery
from services.registry.keys import Keys, new_secret
from services.registry.leases import Succeeded
from services.registry.models import NewModel
from services.registry.pages import PageRequest
from services.registry.tables import AuditEntry
from tests.support.registry_data import store_checkpoint

ADA = Principal("key-1", "ada", "trainer")


@pytest.fixture
def audit(database, clock):
    return Audit(database, clock)


@pytest.fixture(autouse=True)
def ada_calls():
    set_call(Call(ADA, "RegistryService.Test"))


async def entries(audit, **query):
    return (await audit.list_entries(AuditQuery(**query), PageRequest())).rows


async def lines(audit, **query):
    return [(entry.resource, entry.value, entry.outcome) for entry in await entries(audit, **query)]


async def test_an_entry_says_who_did_what_when(audit, registry, clock):
    await registry.models.create(NewModel(name="seedling", licence="mit"))
    [entry] = await entries(audit)
    assert (entry.principal, entry.key_id, entry.action) == ("ada", "key-1", "RegistryService.Test")
    assert (entry.resource, entry.value, entry.outcome) == ("model/seedling", "mit", "OK")
    assert entry.time == clock()


async def test_a_change_whose_entry_cannot_be_written_does_not_happen(audit, registry, database):
    async with database.write() as session:
        await session.execute(text("ALTER TABLE audit_entries RENAME TO away"))
    with pytest.raises(DBAPIError, match="audit_entries"):
        await registry.models.create(NewModel(name="seedling", licence="mit"))
    assert not (await registry.models.list_models(PageRequest())).rows


async def test_a_change_that_fails_leaves_no_entry(audit, registry):
    await registry.models.create(NewModel(name="seedling", licence="mit"))
    with pytest.raises(AlreadyExists):
        await registry.models.create(NewModel(name="seedling", licence="mit"))
    with pytest.raises(NotFound):
        await registry.set_alias("production", "nobody")
    assert await lines(audit) == [("model/seedling", "mit", "OK")]


async def test_what_is_done_again_without_a_change_is_no_second_entry(audit, registry, database):
    await registry.add_dataset()
    await registry.add_dataset()
    secret = new_secret()
    for _ in range(2):
        await Keys(database, b"pepper").register("ada", "user", secret)
    assert [resource.partition("/")[0] for resource, *_ in await lines(audit)] == ["key", "dataset"]


CHANGES = (
    "UPDATE audit_entries SET principal = 'eve'",
    "UPDATE audit_entries SET outcome = 'OK' WHERE id = 1",
    "DELETE FROM audit_entries",
    "DELETE FROM audit_entries WHERE id = 1",
)
OWN_CHANGES = {
    "sqlite": (
        "INSERT OR REPLACE INTO audit_entries SELECT id, time, 'eve', '', '', '', '', '', '' FROM audit_entries",
    ),
    "postgresql": (
        "TRUNCATE audit_entries",
        "INSERT INTO audit_entries SELECT * FROM audit_entries ON CONFLICT (id) DO UPDATE SET principal = 'eve'",
    ),
}


async def test_plain_sql_cannot_change_an_entry(audit, database):
    await audit.append("artifact/x", "3 bytes")
    for statement in (*CHANGES, *OWN_CHANGES[database.engine.dialect.name]):
        with pytest.raises(DBAPIError, match="audit_entries is append-only"):
            async with database.write() as session:
                await session.execute(text(statement))
        assert await lines(audit) == [("artifact/x", "3 bytes", "OK")]


async def test_without_its_triggers_the_log_could_be_changed(audit, database):
    """What the test above would see if a migration lost them."""
    await audit.append("artifact/x")
    async with database.write() as session:
        if database.engine.dialect.name == "sqlite":
            await session.execute(text("DROP TRIGGER audit_entries_no_delete"))
        else:
            await session.execute(text("DROP TRIGGER audit_entries_append_only ON audit_entries"))
        await session.execute(text("DELETE FROM audit_entries"))
    assert await lines(audit) == []


async def test_refusals_are_written_once_a_minute_each(audit, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("services.registry.audit.time.monotonic", lambda: now)
    call = Call(ADA, "RegistryService.SetAlias")
    for resource in ("production", "production", "staging"):
        await audit.denied(call, resource)
    denied = "PERMISSION_DENIED"
    assert await lines(audit) == [("alias/staging", "", denied), ("alias/production", "", denied)]
    now += 60
    await audit.denied(call, "production")
    assert len(await lines(audit)) == 3


async def test_another_service_reports_what_it_refused_to_a_key_that_there_is(audit, database):
    key, _ = await Keys(database, b"pepper").create("eve", "viewer")
    await audit.report(key.id, "POST /v1/completions", "")
    [entry] = await entries(audit, principal="eve")
    assert (entry.key_id, entry.action, entry.outcome) == (key.id, "POST /v1/completions", "PERMISSION_DENIED")
    with pytest.raises(NotFound, match="no API key 'key-0'"):
        await audit.report("key-0", "POST /v1/completions", "")


async def test_a_key_or_a_novel_in_the_place_of_a_name_is_not_kept(audit):
    secret = new_secret()
    await audit.denied(Call(ADA, "RegistryService.GetModel"), f"{secret}\n\x1b[31m" + "long " * 1000)
    [entry] = await entries(audit)
    assert secret not in entry.resource
    assert entry.resource.startswith("model/an_…\ufffd\ufffd[31mlong long")
    assert len(entry.resource) <= 260


async def test_entries_are_found_by_who_what_where_and_when(audit, clock):
    for name, action, resource in (
        ("ada", "RegistryService.SetAlias", "alias/a"),
        ("ada", "JobService.CreateJob", "job/1"),
        ("bob", "RegistryService.SetAlias", "alias/b"),
    ):
        set_call(Call(Principal("key", name, "trainer"), action))
        await audit.append(resource)
        clock.advance(60)

    async def found(**query):
        return [entry.resource for entry in await entries(audit, **query)]

    start = clock.now.replace(minute=0)
    second = start.replace(minute=1)
    assert await found() == ["alias/b", "job/1", "alias/a"]
    assert await found(principal="ada") == ["job/1", "alias/a"]
    assert await found(action="RegistryService.SetAlias") == ["alias/b", "alias/a"]
    assert await found(resource="alias/b") == ["alias/b"]
    assert await found(start=second) == ["alias/b", "job/1"]
    assert await found(end=second) == ["alias/a"]
    assert await found(principal="bob", action="JobService.CreateJob") == []


async def test_a_long_log_comes_in_pages_and_a_token_is_of_one_query(audit):
    for number in range(5):
        await audit.append(f"artifact/{number}")
    query, seen, token = AuditQuery(principal="ada"), [], ""
    while True:
        page = await audit.list_entries(query, PageRequest(2, token))
        seen += [entry.resource for entry in page.rows]
        await audit.append("artifact/newer")  # comes in between, and shifts nothing
        token = page.next_token
        if not token:
            break
    assert seen == [f"artifact/{number}" for number in (4, 3, 2, 1, 0)]
    first = await audit.list_entries(query, PageRequest(2))
    with pytest.raises(InvalidArgument, match="is not from this list"):
        await audit.list_entries(AuditQuery(principal="bob"), PageRequest(2, first.next_token))


async def test_every_change_that_a_job_makes_has_its_entry(audit, registry, database):
    job = await registry.submit(deploy_alias="bud")
    await registry.leases.acquire(job.id, "w1")
    await registry.leases.finish(job.id, 1, Succeeded(store_checkpoint(registry.artifacts).files))
    async with database.read() as session:
        written = {(entry.resource, entry.value) for entry in await session.scalars(select(AuditEntry))}
    assert written >= {
        (f"job/{job.id}", "makes sprout"),
        ("version/sprout@1", f"apache-2.0, by {job.id}"),
        ("alias/bud", "sprout@1"),
        ("deployment/bud", "bud on all workers"),
    }
