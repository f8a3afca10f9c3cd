"""What nothing needs any more: told, or deleted."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.artifacts import ArtifactStore, Stored
from services.registry import audit
from services.registry.database import Clock, Database, utc_now
from services.registry.deletion import purge_expired
from services.registry.projects.tables import ProjectArtifact
from services.registry.references import exclude, read_references, read_uploading
from services.registry.uploads import Uploads

GRACE_S = 86_400.0  # between an artifact and what refers to it
BATCH = 100  # files deleted while whoever registers something waits
log = logging.getLogger(__name__)


class Collector:
    def __init__(self, database: Database, artifacts: ArtifactStore, uploads: Uploads, clock: Clock = utc_now) -> None:
        self._database = database
        self._artifacts = artifacts
        self._uploads = uploads
        self._clock = clock

    async def find(self, older_than_s: float = GRACE_S) -> list[Stored]:
        """What is needed by nothing and was written before that time. Uploads that have expired go first."""
        await self._uploads.expire()
        before = self._before(older_than_s)
        old = await asyncio.to_thread(
            lambda: [stored for stored in self._artifacts.stored() if stored.modify_time < before]
        )
        async with self._database.read() as session:
            return await _unneeded(session, old, expired_at=self._clock())

    async def collect(self, older_than_s: float = GRACE_S) -> AsyncIterator[Stored]:
        """Purge versions that were deleted long ago, delete what `find` finds; yield each that was deleted.

        Whether it is needed is read again where nobody can ask for it meanwhile, a batch at a time.
        """
        async with self._database.write() as session:
            await exclude(session)
            await purge_expired(session, self._clock())
        before = self._before(older_than_s)
        found = await self.find(older_than_s)
        for start in range(0, len(found), BATCH):
            for stored in await self._delete(found[start : start + BATCH], before):
                yield stored

    async def _delete(self, batch: list[Stored], before: datetime) -> list[Stored]:
        async with self._database.write() as session:
            await exclude(session)
            unneeded = await _unneeded(session, batch)
            deleted = await asyncio.to_thread(self._remove, unneeded, before)
            if deleted:
                gone = [stored.name for stored in deleted]
                await session.execute(delete(ProjectArtifact).where(ProjectArtifact.digest.in_(gone)))
                freed = sum(stored.size_bytes for stored in deleted)
                audit.record(session, self._clock(), "artifacts", f"{len(deleted)} files, {freed} bytes deleted")
        log.info("collected %d files, %d bytes", len(deleted), sum(stored.size_bytes for stored in deleted))
        return deleted

    def _remove(self, batch: list[Stored], before: datetime) -> list[Stored]:
        return [stored for stored in batch if self._artifacts.remove(stored, written_before=before)]

    def _before(self, older_than_s: float) -> datetime:
        return self._clock() - timedelta(seconds=older_than_s)


async def _unneeded(
    session: AsyncSession, candidates: list[Stored], expired_at: datetime | None = None
) -> list[Stored]:
    needed = (await read_references(session, expired_at)).keys() | await read_uploading(session)
    return [stored for stored in candidates if stored.name not in needed]
