"""The database: SQLite in WAL mode on one machine, PostgreSQL by URL. One code path for both.

On SQLite a writing transaction begins IMMEDIATE: it waits for its turn at the start, where it holds nothing, instead of
failing at its first write. On PostgreSQL the use cases lock the rows they decide on (`with_for_update`, which SQLite's
dialect leaves out).

Who reads never waits for who writes. Writers wait for one another in lines of their own, in order and before they take
a connection: SQLite has one writer anyway, and would let the others sleep and try again. Readers begin no transaction:
each statement sees what was committed when it began, on SQLite too. That is what a transaction gave them on PostgreSQL
(READ COMMITTED), so nobody relied on more; what has to hold together is decided in a transaction that writes, or read
by one statement.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from services.common.errors import Unavailable
from services.registry.projects.session import ScopedSession, check_not_taken
from services.registry.sqlite_driver import SqliteDriver
from services.registry.tables import Base

BUSY_TIMEOUT_MS = 30_000
CONNECTIONS = 15
WRITERS = {"sqlite": 1, "postgresql": 6}  # transactions that write at once; the other connections are the readers'
PING_AFTER_S = 10.0  # a connection that rested for longer
AWAY = ("08", "57P")  # classes of SQLSTATE: connection exceptions; shutting down, crashed, starting
MIGRATIONS = Path(__file__).with_name("migrations")
Clock = Callable[[], datetime]
Row = TypeVar("Row", bound=Base)
log = logging.getLogger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


class Database:
    """Transactions on the registry's database at `url` (SQLAlchemy, async driver)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = open_engine(url)
        backend = self.engine.dialect.name
        # SQLite's dialect would change the driver's isolation level, which is ours; there, to begin nothing is enough.
        without_transaction = {"sqlite_begin": ""} if backend == "sqlite" else {"isolation_level": "AUTOCOMMIT"}
        reading = self.engine.execution_options(**without_transaction)
        writing = self.engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
        scoped: dict[str, Any] = {"sync_session_class": ScopedSession, "expire_on_commit": False}
        self._reading_session = async_sessionmaker(reading, **scoped)
        self._writing_session = async_sessionmaker(writing, **scoped)
        self._writers = asyncio.Semaphore(WRITERS[backend])
        self._background: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """Statements that change nothing, each on its own. Raises Unavailable when the database does not answer."""
        with _lost_connections():
            async with self._reading_session() as session:
                await _connect(session)
                yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A transaction that is committed at the end of the block, or rolled back when it raises.

        Raises Unavailable when the database does not answer: the change was made or not, but never in part.
        """
        with _lost_connections():
            async with self._writers, self._writing_session.begin() as session:
                await _connect(session)
                yield session

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Start what nobody waits for but `close`. What it raises is logged."""
        task = asyncio.create_task(_logged(work))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def check_revision(self) -> None:
        """Raise RuntimeError unless the schema is the newest one."""
        head = ScriptDirectory.from_config(alembic_config()).get_current_head()
        async with self.engine.connect() as connection:
            found = await connection.run_sync(_current_revision)
        if found != head:
            raise RuntimeError(
                f"the database is at revision {found}, this program needs {head}; "
                "run `python -m services.registry.bootstrap`"
            )

    async def settle(self) -> None:
        """Wait for what was started in the background."""
        await asyncio.gather(*self._background)

    async def close(self) -> None:
        await self.settle()
        await self.engine.dispose()


async def _connect(session: AsyncSession) -> None:
    """Take a connection before anything else is done: what fails here is the database's, not the block's."""
    try:
        await session.connection()
    except (OSError, sqlalchemy.exc.TimeoutError) as error:
        raise _away(error) from error


@contextmanager
def _lost_connections() -> Iterator[None]:
    try:
        yield
    except sqlalchemy.exc.DBAPIError as error:
        state = str(getattr(error.orig, "sqlstate", None) or "")
        if error.connection_invalidated or state.startswith(AWAY):
            raise _away(error.orig) from error
        raise


def _away(error: BaseException | None) -> Unavailable:
    log.error("the database does not answer: %s: %s", type(error).__name__, error)
    return Unavailable("the registry's database does not answer; nothing is lost: try again in a moment")


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception as error:
        log.warning("work in the background failed: %s: %s", type(error).__name__, error)


def open_engine(url: str, *, sqlite_foreign_keys: bool = True) -> AsyncEngine:
    """An engine on `url`. SQLite checks foreign keys unless told not to, as a migration that copies tables must."""
    pool = {"pool_size": CONNECTIONS, "max_overflow": 0}
    if make_url(url).get_backend_name() != "sqlite":
        engine = create_async_engine(url, **pool)
        event.listen(engine.sync_engine, "checkin", _note_rest)
        event.listen(engine.sync_engine, "checkout", partial(_check_alive, engine.dialect))
        return engine
    engine = create_async_engine(url, module=SqliteDriver(), **pool)
    event.listen(engine.sync_engine, "connect", partial(_set_up_sqlite, foreign_keys=sqlite_foreign_keys))
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _note_rest(_connection: Any, record: Any) -> None:
    record.info["rests_since"] = time.monotonic()


def _check_alive(dialect: sqlalchemy.Dialect, connection: Any, record: Any, _proxy: Any) -> None:
    """Have the connection replaced, and all others, where the server has ended it.

    The socket tells at once, without a question; only of one that rested a while might the end have been lost.
    """
    rested_s = time.monotonic() - record.info.get("rests_since", float("inf"))
    if connection.driver_connection.is_closed():
        raise sqlalchemy.exc.InvalidatePoolError
    if rested_s > PING_AFTER_S:
        try:
            dialect.do_ping(connection)
        except dialect.loaded_dbapi.Error as error:
            raise sqlalchemy.exc.InvalidatePoolError from error


def _set_up_sqlite(connection: Any, _record: Any, *, foreign_keys: bool) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # an accepted job survives a power cut
    cursor.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
    cursor.close()


def _begin_sqlite(connection: sqlalchemy.Connection) -> None:
    if begin := connection.get_execution_options().get("sqlite_begin", "BEGIN"):
        connection.exec_driver_sql(begin)


def _current_revision(connection: sqlalchemy.Connection) -> str | None:
    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(sqlalchemy.text("SELECT version_num FROM alembic_version"))
    return revision


def alembic_config(url: str | None = None) -> Config:
    """Alembic's settings, without a file: where the revisions lie and which database they change."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["url"] = url
    return config


async def insert_if_absent(session: AsyncSession, table: type[Base], **values: Any) -> bool:
    """Insert a row unless one with the same key (or other unique value) exists; say whether it was inserted.

    Raises AlreadyExists where the one that exists is another project's.
    """
    result = await session.execute(_insert(session, table).values(**values).on_conflict_do_nothing())
    inserted = bool(result.rowcount)  # type: ignore[attr-defined]
    if not inserted:
        await check_not_taken(session, table, values)
    return inserted


async def insert_row(session: AsyncSession, table: type[Row], **values: Any) -> Row | None:
    """The row, as it is inserted; None where one with the same key or other unique value exists."""
    insert = _insert(session, table).values(**values).on_conflict_do_nothing().returning(table)
    return (await session.scalars(insert)).one_or_none()


def _insert(session: AsyncSession, table: type[Base]) -> "postgresql.Insert | sqlite.Insert":
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    return insert(table)
