"""The database: SQLite in WAL mode on one machine, PostgreSQL by URL. One code path for both.

On SQLite a writing transaction begins IMMEDIATE: it waits for its turn at the start, where it holds nothing, instead of
failing at its first write. On PostgreSQL the use cases lock the rows they decide on (`with_for_update`, which SQLite's
dialect leaves out).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from services.common.errors import Unavailable
from services.registry.projects.session import ScopedSession, check_not_taken
from services.registry.tables import Base

BUSY_TIMEOUT_MS = 30_000
AWAY = ("08", "57P")  # classes of SQLSTATE: connection exceptions; shutting down, crashed, starting
MIGRATIONS = Path(__file__).with_name("migrations")
Clock = Callable[[], datetime]
log = logging.getLogger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


class Database:
    """Transactions on the registry's database at `url` (SQLAlchemy, async driver)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = open_engine(url)
        writing = self.engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
        scoped: dict[str, Any] = {"sync_session_class": ScopedSession, "expire_on_commit": False}
        self._reading_session = async_sessionmaker(self.engine, **scoped)
        self._writing_session = async_sessionmaker(writing, **scoped)
        self._background: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A transaction that changes nothing. Raises Unavailable when the database does not answer."""
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
            async with self._writing_session.begin() as session:
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
    if make_url(url).get_backend_name() != "sqlite":
        return create_async_engine(url, pool_pre_ping=True)
    engine = create_async_engine(url)
    event.listen(engine.sync_engine, "connect", partial(_set_up_sqlite, foreign_keys=sqlite_foreign_keys))
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: Any, *, foreign_keys: bool) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # an accepted job survives a power cut
    cursor.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
    cursor.close()


def _begin_sqlite(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))


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
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    result = await session.execute(insert(table).values(**values).on_conflict_do_nothing())
    inserted = bool(result.rowcount)  # type: ignore[attr-defined]
    if not inserted:
        await check_not_taken(session, table, values)
    return inserted
