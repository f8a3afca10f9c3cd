"""What `benchmarks.listing` fills a registry with."""

from pathlib import Path

from sqlalchemy import func, insert, select

from benchmarks.registry_rows import Rows
from services.registry.database import Database
from services.registry.tables import Base


async def test_rows_fit_the_tables_of_today(tmp_path: Path):
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'registry.db'}")
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    rows = Rows(num_versions=40, num_jobs=30)
    async with database.write() as session:
        for kind in rows.tables():
            await session.execute(insert(kind.table), list(kind.rows))
            assert await session.scalar(select(func.count()).select_from(kind.table))
    await database.close()
