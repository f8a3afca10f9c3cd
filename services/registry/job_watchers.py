"""Which watched jobs have something new: one query for all streams of this process, however many there are."""

import asyncio
import contextlib
from collections import defaultdict
from contextvars import Context

from sqlalchemy import select

from services.registry.database import Database
from services.registry.tables import ENDED, Job

BATCH = 500  # jobs in a query


class JobWatchers:
    """Polls, rather than be told: what another process wrote is seen as soon as what this one did."""

    def __init__(self, database: Database, poll_s: float) -> None:
        self._database = database
        self._poll_s = poll_s
        self._waiting: dict[str, dict[asyncio.Future[None], int]] = defaultdict(dict)  # job -> who waits, after what
        self._polling: asyncio.Task[None] | None = None

    async def wait(self, job_id: str, after: int) -> None:
        """Return once the job has an event with a sequence above `after`, or has ended. Raises Unavailable."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[job_id][future] = after
        if self._polling is None or self._polling.done():
            # Not the first watcher's: a query for all streams sees the jobs of all projects.
            self._polling = asyncio.create_task(self._poll(), context=Context())
        try:
            await future
        finally:
            del self._waiting[job_id][future]
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def _poll(self) -> None:
        """Until nobody waits."""
        while self._waiting:
            await asyncio.sleep(self._poll_s)
            try:
                await self._look()
            except Exception as error:
                for waiting in self._waiting.values():
                    for future in waiting:
                        with contextlib.suppress(asyncio.InvalidStateError):
                            future.set_exception(error)

    async def _look(self) -> None:
        job_ids = list(self._waiting)
        for start in range(0, len(job_ids), BATCH):
            query = select(Job.id, Job.last_sequence, Job.state).where(Job.id.in_(job_ids[start : start + BATCH]))
            async with self._database.read() as session:
                rows = (await session.execute(query)).all()
            for job_id, last, state in rows:
                for future, after in self._waiting.get(job_id, {}).items():
                    if (last > after or state in ENDED) and not future.done():
                        future.set_result(None)
