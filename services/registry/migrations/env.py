"""Alembic's entry: brings the database at `config.attributes["url"]` to another revision."""

import asyncio
from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection, text

from services.registry.database import open_engine
from services.registry.tables import AnyText, Base, UtcDateTime

MIGRATION_LOCK = 0x616E7468  # one migration at a time, whatever number of bootstraps run


def render_item(kind: str, item: Any, autogen_context: Any) -> str | Literal[False]:
    """Revisions spell our own type out: they must not change when the code does."""
    spelled = {UtcDateTime: "sa.DateTime(timezone=True)", AnyText: "sa.Text()"}
    return spelled.get(type(item), False)


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection, target_metadata=Base.metadata, render_as_batch=True, render_item=render_item
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        context.run_migrations()
        if connection.dialect.name == "sqlite":
            _check_references(connection)


def _check_references(connection: Connection) -> None:
    """What SQLite's foreign keys, off while tables are copied, would have said."""
    if broken := connection.execute(text("PRAGMA foreign_key_check")).all():
        raise RuntimeError(f"the migration leaves rows that refer to nothing, so it is undone: {broken[:10]}")


async def main() -> None:
    engine = open_engine(context.config.attributes["url"], sqlite_foreign_keys=False)
    async with engine.execution_options(sqlite_begin="BEGIN IMMEDIATE").connect() as connection:
        await connection.run_sync(migrate)
        await connection.commit()
    await engine.dispose()


asyncio.run(main())
