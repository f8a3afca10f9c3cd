"""SQLite's driver is a piece of SQLAlchemy that is not public: a release that moves it fails here."""

import threading

import aiosqlite
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError

from services.registry.database import open_engine
from services.registry.sqlite_driver import SqliteDriver, _Connection, _Cursor


@pytest.fixture
async def engine(tmp_path):
    engine = open_engine(f"sqlite+aiosqlite:///{tmp_path}/driver.db")
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE numbers (number INTEGER PRIMARY KEY, name TEXT UNIQUE)"))
    yield engine
    await engine.dispose()


@pytest.fixture
def hops(monkeypatch):
    """What is handed to a connection's thread, one by one."""
    handed = []
    execute = aiosqlite.Connection._execute

    async def counted(self, function, *args, **kwargs):
        handed.append(function)
        return await execute(self, function, *args, **kwargs)

    monkeypatch.setattr(aiosqlite.Connection, "_execute", counted)
    return handed


def test_what_it_derives_from_is_where_it_was():
    assert isinstance(open_engine("sqlite+aiosqlite:///x.db").dialect.dbapi, SqliteDriver)
    assert _Connection._cursor_cls is _Cursor
    for name in ("_execute_async", "_executemany_async", "_awaitable_cursor_close", "close", "description"):
        assert any(name in vars(kind) for kind in _Cursor.__mro__[1:]), f"SQLAlchemy's cursor has no {name} to replace"


async def test_a_statement_is_one_hop_and_a_rollback_of_nothing_none(engine, hops):
    reading = engine.execution_options(sqlite_begin="")
    async with reading.connect() as connection:
        hops.clear()
        for statement in ("SELECT 1 UNION SELECT 2", "INSERT INTO numbers VALUES (1, 'one')"):
            await connection.execute(text(statement))
        assert len(hops) == 2
    assert len(hops) == 2
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO numbers VALUES (2, 'two')"))
    assert len(hops) == 2 + 3  # begin, insert, commit


async def test_rows_counts_and_ids_are_those_of_the_statement(engine):
    async with engine.begin() as connection:
        insert = text("INSERT INTO numbers (name) VALUES (:name)")
        assert (await connection.execute(insert, {"name": "a"})).lastrowid == 1
        await connection.execute(insert, [{"name": name} for name in "bcd"])
        returned = await connection.execute(
            text("UPDATE numbers SET name = name || '!' WHERE number > 2 RETURNING name")
        )
        assert returned.scalars().all() == ["c!", "d!"]
        assert (await connection.execute(text("DELETE FROM numbers WHERE number > 2"))).rowcount == 2
        rows = await connection.execute(text("SELECT number, name FROM numbers ORDER BY number"))
        assert rows.mappings().all() == [{"number": 1, "name": "a"}, {"number": 2, "name": "b"}]
        assert (await connection.execute(text("SELECT 1 WHERE 0"))).all() == []


async def test_what_fails_is_raised_and_the_connection_goes_on(engine):
    async with engine.connect() as connection:
        with pytest.raises(OperationalError, match="no such table"):
            await connection.execute(text("SELECT * FROM absent"))
        await connection.rollback()
        await connection.execute(text("INSERT INTO numbers VALUES (1, 'one')"))
        with pytest.raises(IntegrityError, match="UNIQUE"):
            await connection.execute(text("INSERT INTO numbers VALUES (2, 'one')"))
        await connection.rollback()
        assert (await connection.execute(text("SELECT count(*) FROM numbers"))).scalar() == 0


async def test_statements_run_in_the_connections_thread(engine):
    threads = set()
    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()
        await raw.driver_connection.create_function("note", 0, lambda: threads.add(threading.get_ident()))
        await connection.execute(text("SELECT note()"))
    assert threads
    assert threading.get_ident() not in threads
