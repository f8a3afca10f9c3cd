"""Alembic's entry: brings the database at `config.attributes["url"]` to another revision."""

import asyncio
from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection, text

from services.registry.database import open_engine
from services.registry.tables import Base, UtcDateTime

MIGRATION_LOCK = 0x616E7468  # one migration at a time, whatever number of bootstraps run


def render_item(kind: str, item: Any, autogen_context: Any) -> str | Literal[False]:
    """Revisions spell our own type out: they must not change when the code does."""
    return "sa.DateTime(timezone=True)" if isinstance(item, UtcDateTime) else False


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection, target_metadata=Base.metadata, render_as_batch=True, render_item=render_item
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        context.run_migrations()


async def main() -> None:
    engine = open_engine(context.config.attributes["url"])
    async with engine.execution_options(sqlite_begin="BEGIN IMMEDIATE").connect() as connection:
        await connection.run_sync(migrate)
        await connection.commit()
    await engine.dispose()


asyncio.run(main())
