import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.registry_data import DATABASES, fresh_database
from tests.support.registry_server import RunningRegistry, running_registry


@pytest.fixture(params=DATABASES)
async def registry(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RunningRegistry]:
    """A bootstrapped registry that serves, on SQLite and, where it is installed, on PostgreSQL."""
    (tmp_path / "data").mkdir()
    url = await asyncio.to_thread(fresh_database, request.param, tmp_path / "data")
    async with running_registry(data_dir=tmp_path / "data", database_url=url, worker_lease_s=5.0) as running:
        yield running
