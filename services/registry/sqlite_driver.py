"""aiosqlite for SQLAlchemy with one hop to the connection's thread per statement, where SQLAlchemy's own adaptor makes
four: make a cursor, execute, fetch, close it. And none to roll back where nothing began.

What it derives from is no public API of SQLAlchemy's: tests/unit/registry/test_sqlite_driver.py tells when that moves.
"""

import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import aiosqlite
from sqlalchemy.connectors.asyncio import AsyncAdapt_dbapi_connection
from sqlalchemy.dialects.sqlite.aiosqlite import (
    AsyncAdapt_aiosqlite_connection,
    AsyncAdapt_aiosqlite_cursor,
    AsyncAdapt_aiosqlite_dbapi,
)
from sqlalchemy.util import EMPTY_DICT

Rows = Sequence[tuple[Any, ...]]


class _Cursor(AsyncAdapt_aiosqlite_cursor):
    """Has all rows once it has executed. The driver's cursor is exhausted then, and goes with this one."""

    __slots__ = ()
    _awaitable_cursor_close = False

    def __init__(self, connection: AsyncAdapt_dbapi_connection) -> None:
        self._adapt_connection = connection
        self._connection = connection._connection
        self._cursor = _NOT_EXECUTED
        self._soft_closed_memoized = EMPTY_DICT
        self._rows = deque()

    async def _execute_async(self, operation: Any, parameters: Any) -> Any:
        await self._run(partial(_execute, operation, () if parameters is None else parameters))

    async def _executemany_async(self, operation: Any, seq_of_parameters: Any) -> Any:
        await self._run(partial(_execute_many, operation, seq_of_parameters))

    async def _run(self, work: Callable[[sqlite3.Connection], tuple[sqlite3.Cursor, Rows]]) -> None:
        async with self._adapt_connection._execute_mutex:
            connection = self._connection
            self._cursor, rows = await connection._execute(lambda: work(connection._conn))
        self._rows = deque(rows)

    def close(self) -> None:
        self._rows.clear()


class _NotExecuted:
    description, rowcount, lastrowid, arraysize = None, -1, None, 1


_NOT_EXECUTED: Any = _NotExecuted()


def _execute(operation: str, parameters: Any, connection: sqlite3.Connection) -> tuple[sqlite3.Cursor, Rows]:
    cursor = connection.execute(operation, parameters)
    return cursor, cursor.fetchall() if cursor.description else ()


def _execute_many(operation: str, rows: Any, connection: sqlite3.Connection) -> tuple[sqlite3.Cursor, Rows]:
    return connection.executemany(operation, rows), ()


class _Connection(AsyncAdapt_aiosqlite_connection):
    __slots__ = ()
    _cursor_cls = _Cursor  # type: ignore[assignment]  # is one, whatever the base infers

    def rollback(self) -> None:
        if self._connection._connection and self._connection.in_transaction:
            super().rollback()


class SqliteDriver(AsyncAdapt_aiosqlite_dbapi):
    """The `module` of an engine on "sqlite+aiosqlite://"."""

    def __init__(self) -> None:
        super().__init__(aiosqlite, sqlite3)

    def connect(self, *arg: Any, **kw: Any) -> AsyncAdapt_aiosqlite_connection:
        return _Connection(self, super().connect(*arg, **kw)._connection)
