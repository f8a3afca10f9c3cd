"""Readers and writers of one database, on SQLite and PostgreSQL."""

import asyncio

import pytest
from sqlalchemy import event, text

from services.registry import database as module
from services.registry.database import CONNECTIONS, WRITERS, Database
from services.registry.tables import Worker

COUNT = text("SELECT count(*) FROM workers")
PROCESS = text("SELECT pg_backend_pid()")


async def add_worker(database: Database, name: str, clock) -> None:
    async with database.write() as session:
        session.add(Worker(id=name, address="", device="", models=[], lease_expires=clock()))


async def test_readers_go_on_while_more_write_than_there_are_connections(database):
    release, wrote = asyncio.Event(), []
    under_way = asyncio.Event()

    async def write(number):
        async with database.write():
            under_way.set()
            await release.wait()
            wrote.append(number)

    writers = [asyncio.create_task(write(number)) for number in range(CONNECTIONS + 5)]
    await under_way.wait()
    async with asyncio.timeout(10):
        async with database.read() as session:
            assert await session.scalar(COUNT) == 0
        assert wrote == []
        release.set()
        await asyncio.gather(*writers)
    assert len(wrote) == CONNECTIONS + 5
    if WRITERS[database.engine.dialect.name] == 1:
        assert wrote == sorted(wrote)  # each in its turn


async def test_a_writer_that_fails_leaves_its_line_to_the_next(database):
    for _ in range(max(WRITERS.values()) + 1):
        with pytest.raises(KeyError):
            async with database.write():
                raise KeyError
    async with asyncio.timeout(10), database.write() as session:
        assert await session.scalar(COUNT) == 0


async def test_a_read_begins_no_transaction_and_each_statement_sees_what_is_committed(database, clock):
    statements = []
    event.listen(database.engine.sync_engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    async with database.read() as session:
        assert await session.scalar(COUNT) == 0
        assert [statement for statement in statements if "workers" not in statement] == []
        await add_worker(database, "w1", clock)
        assert await session.scalar(COUNT) == 1


async def test_after_a_read_a_write_is_a_transaction_again(database, clock):
    await add_worker(database, "w1", clock)
    async with database.read() as session:  # by the connection that comes next
        await session.scalar(COUNT)
    with pytest.raises(KeyError):
        async with database.write() as session:
            await session.execute(text("DELETE FROM workers"))
            raise KeyError
    async with database.read() as session:
        assert await session.scalar(COUNT) == 1


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_a_connection_that_the_server_has_ended_is_replaced_before_it_is_used(database):
    async with database.read() as session:
        resting = await session.scalar(PROCESS)
        driver = (await (await session.connection()).get_raw_connection()).driver_connection
    ended = asyncio.Event()
    driver.add_termination_listener(lambda _connection: ended.set())
    another = Database(database.url)
    async with another.read() as session:
        await session.execute(text("SELECT pg_terminate_backend(:process)"), {"process": resting})
    await another.close()
    async with asyncio.timeout(10):
        await ended.wait()
        async with database.read() as session:
            assert await session.scalar(PROCESS) != resting


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_a_connection_that_rested_is_asked_whether_it_still_is_one(database, monkeypatch):
    asked = []
    ping = database.engine.dialect.do_ping
    monkeypatch.setattr(database.engine.dialect, "do_ping", lambda connection: asked.append(ping(connection)))
    for seconds, times in ((module.PING_AFTER_S, 0), (-1.0, 1)):
        monkeypatch.setattr(module, "PING_AFTER_S", seconds)
        async with database.read() as session:
            await session.scalar(COUNT)
        async with database.read() as session:
            await session.scalar(COUNT)
        assert len(asked) == times * 2
