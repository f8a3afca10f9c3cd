"""Uploads that go on where they broke off.

Bytes gather in a staged file, whose size says how far an upload is, whatever was killed; whole and verified it becomes
the artifact. A row says whose it is. Ended uploads are remembered as long as broken ones are kept: until then the
collector leaves alone what was just sent, or found to be there, and is not referred to yet.
"""

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from anthesis.write_behind import write_behind
from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.artifacts import ArtifactStore, check_digest
from services.common.auth import current_project
from services.common.errors import Aborted, DataLoss, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from services.registry import audit
from services.registry.database import Clock, Database, utc_now
from services.registry.names import new_id
from services.registry.pages import Page, PageRequest, read_page
from services.registry.projects.artifacts import may_read, note_artifacts
from services.registry.projects.quotas import check_stored_bytes
from services.registry.references import hold_off_collector
from services.registry.staged_file import StagedFile
from services.registry.tables import Upload
from services.registry.upload_limits import DEFAULT_LIMITS, UploadLimits
from services.registry.upload_streams import UploadStreams, finish_in_thread


@dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
    """`upload_id` is empty where nothing is to be sent."""

    upload_id: str
    offset: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Unfinished:
    upload: Upload
    received: int  # bytes, that lie at this registry
    expires: datetime  # dropped when an upload begins after that, unless it is being sent
    is_sent: bool  # by a call that goes on now


class Uploads:
    def __init__(
        self,
        database: Database,
        artifacts: ArtifactStore,
        limits: UploadLimits = DEFAULT_LIMITS,
        clock: Clock = utc_now,
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._limits = limits
        self._clock = clock
        self._streams = UploadStreams()
        self._beginning = asyncio.Lock()

    async def begin(
        self, principal: str, digest: str, size_bytes: int, *, upload_id: str = "", again: bool = False
    ) -> Begun:
        """Where the caller's upload of an artifact goes on; unless `again`, nowhere if the artifact is there.

        For a project that may not read it, it is not: who knows its digest alone does not have it.

        `upload_id` names an earlier answer, whose stream is ended; else one that nobody sends is taken, or a new one
        made. Raises InvalidArgument, ResourceExhausted.
        """
        check_digest(digest)
        self._limits.check(principal, [], size_bytes)
        if upload_id and (upload := await self._find(principal, upload_id)) and upload.digest == digest:
            await self._streams.end(
                upload_id, Aborted(f"upload {upload_id} goes on in another stream, as its sender asked")
            )
        async with self._transaction() as session:
            if not again and await may_read(session, [digest]) and await self.is_stored(digest, size_bytes):
                await self._remember(session, principal, digest, size_bytes)
                return Begun(upload_id="", offset=size_bytes)
            found = await self._broken_off(session, principal, digest, size_bytes, upload_id)
            upload = found or await self._insert(session, principal, digest, size_bytes)
        return Begun(upload_id=upload.id, offset=self._size_here(upload))

    async def list_unfinished(self, principal: str, request: PageRequest) -> Page[Unfinished]:
        """The caller's, oldest first. Raises InvalidArgument."""
        query = select(Upload).where(Upload.principal == principal, Upload.finish_time.is_(None))
        async with self._database.read() as session:
            page = await read_page(session, query, Upload.id, request, scope=f"uploads of {principal}")
        return Page([await asyncio.to_thread(self._describe, upload) for upload in page.rows], page.next_token)

    def _describe(self, upload: Upload) -> Unfinished:
        expires = self._last_byte(upload) + timedelta(seconds=self._limits.expiry_s)
        return Unfinished(
            upload=upload, received=self._size_here(upload), expires=expires, is_sent=upload.id in self._streams
        )

    async def abandon(self, principal: str, upload_id: str) -> None:
        """Drop the caller's unfinished upload with what came of it; a stream that sends it ends. Raises NotFound."""
        async with self._transaction() as session:
            mine = (Upload.principal == principal, Upload.id == upload_id, Upload.finish_time.is_(None))
            digest = await session.scalar(delete(Upload).where(*mine).returning(Upload.digest))
            if digest is None:
                raise _no_upload(principal, upload_id)
            audit.record(session, self._clock(), f"artifact/{digest}", f"upload {upload_id} abandoned")
        # The row is gone, so no other stream begins; and none comes between this and the next line.
        try:
            await self._streams.end(upload_id, FailedPrecondition(f"upload {upload_id} was abandoned; begin another"))
        finally:  # also where the caller does not wait: nobody else would look for the file
            self._path(upload_id).unlink(missing_ok=True)

    async def start(self, principal: str, digest: str, size_bytes: int) -> Upload:
        """A new upload, whatever there is. Raises InvalidArgument, ResourceExhausted."""
        check_digest(digest)
        self._limits.check(principal, [], size_bytes)
        async with self._transaction() as session:
            return await self._insert(session, principal, digest, size_bytes)

    async def is_stored(self, digest: str, size_bytes: int) -> bool:
        """Whether the artifact is there. One of another size than stated is damaged, and to be sent again."""
        return await asyncio.to_thread(self._is_stored, digest, size_bytes)

    async def get(self, principal: str, upload_id: str, digest: str, size_bytes: int) -> Upload:
        """The caller's unfinished upload. Raises NotFound, InvalidArgument where it is one of something else."""
        upload = await self._find(principal, upload_id)
        if upload is None:
            raise _no_upload(principal, upload_id)
        if (upload.digest, upload.size_bytes) != (digest, size_bytes):
            raise InvalidArgument(
                f"upload {upload.id} is of {upload.size_bytes} bytes with {upload.digest}, the header says "
                f"{size_bytes} with {digest[:200]!r}; begin another for these"
            )
        return upload

    async def receive(self, upload: Upload, offset: int, chunks: AsyncIterator[bytes]) -> None:
        """Store what comes as the upload's bytes from `offset` on; whole, they are the artifact.

        Whatever ends the stream early, the bytes that came are kept. Nothing is of an upload that turns out to lie
        about its size (InvalidArgument) or its digest (DataLoss). Raises Aborted while another stream sends it,
        FailedPrecondition for an offset behind what is here, ResourceExhausted on a full disk.
        """
        async with self._streams.alone(upload.id):
            try:
                whole = await self._gather(upload, offset, chunks)
            except (InvalidArgument, DataLoss):
                await self._discard(upload.id)
                raise
            except FileNotFoundError:
                raise NotFound(f"upload {upload.id} has ended meanwhile; BeginUpload says how it stands") from None
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise ResourceExhausted(
                    f"the registry's disk is full at upload {upload.id}; what came is kept: make room and go on"
                ) from error
            if not whole:
                raise InvalidArgument(
                    f"upload of {upload.digest}: its header says {upload.size_bytes} bytes, fewer came; BeginUpload "
                    "says where to go on"
                )
            await finish_in_thread(self._artifacts.adopt, upload.digest, self._path(upload.id))
            async with self._database.write() as session:
                await session.execute(update(Upload).where(Upload.id == upload.id).values(finish_time=self._clock()))
                if project := current_project():
                    await note_artifacts(session, project, {upload.digest: upload.size_bytes})

    async def _gather(self, upload: Upload, offset: int, chunks: AsyncIterator[bytes]) -> bool:
        """Append what comes; say whether it is all of the artifact, verified and on disk."""
        staged = await finish_in_thread(StagedFile, self._path(upload.id), offset)
        try:
            await _append(upload, staged, chunks)
            if staged.size == upload.size_bytes:
                if staged.digest != upload.digest:
                    raise DataLoss(
                        f"the {staged.size} bytes received have {staged.digest}, not {upload.digest}; send them again"
                    )
                await finish_in_thread(staged.sync)
                return True
            if staged.digest == upload.digest:  # more will never come
                raise InvalidArgument(_other_size(upload, staged.size))
            return False
        finally:
            staged.close()

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncSession]:
        """One at a time, with the collector away and what has expired gone."""
        async with self._beginning, self._database.write() as session:
            await hold_off_collector(session)
            await self._expire(session)
            yield session

    async def expire(self) -> None:
        """Drop what nobody has gone on with."""
        async with self._transaction():
            pass

    async def _expire(self, session: AsyncSession) -> None:
        oldest = self._clock() - timedelta(seconds=self._limits.expiry_s)
        await session.execute(delete(Upload).where(Upload.finish_time < oldest))
        for upload in await _unfinished(session):
            if upload.id not in self._streams and self._last_byte(upload) < oldest:
                await session.delete(upload)
                self._path(upload.id).unlink(missing_ok=True)
        await session.flush()

    def _last_byte(self, upload: Upload) -> datetime:
        """When it came; of an upload whose file lies at another registry we know when it began."""
        try:
            return datetime.fromtimestamp(self._path(upload.id).stat().st_mtime, UTC)
        except FileNotFoundError:
            return upload.create_time

    async def _broken_off(
        self, session: AsyncSession, principal: str, digest: str, size_bytes: int, upload_id: str
    ) -> Upload | None:
        """Of the uploads of it that lie here and nobody sends: `upload_id`, else that of which most is here."""
        wanted = (Upload.principal == principal, Upload.digest == digest, Upload.size_bytes == size_bytes)
        idle = [upload for upload in await _unfinished(session, *wanted) if self._is_idle(upload)]
        return max(idle, key=lambda upload: (upload.id == upload_id, self._size_here(upload)), default=None)

    def _is_idle(self, upload: Upload) -> bool:
        return upload.id not in self._streams and self._path(upload.id).exists()

    async def _insert(self, session: AsyncSession, principal: str, digest: str, size_bytes: int) -> Upload:
        unfinished = await _unfinished(session, Upload.principal == principal)
        self._limits.check(principal, [upload.size_bytes for upload in unfinished], size_bytes)
        await check_stored_bytes(session, {digest: size_bytes})
        now = self._clock()
        upload = Upload(
            id=new_id("upload", now), principal=principal, digest=digest, size_bytes=size_bytes, create_time=now
        )
        session.add(upload)
        await session.flush()
        self._artifacts.staging.mkdir(parents=True, exist_ok=True)
        self._path(upload.id).touch(mode=0o600)
        return upload

    async def _remember(self, session: AsyncSession, principal: str, digest: str, size_bytes: int) -> None:
        """The collector lets be what somebody was just told is there.

        An upload without a file has ended, too: whoever received it died before the row said so.
        """
        now = self._clock()
        known = list(await session.scalars(select(Upload).where(Upload.digest == digest)))
        ended = [upload for upload in known if upload.finish_time or not self._path(upload.id).exists()]
        for upload in ended:
            upload.finish_time = now
        if not ended:
            values = {"principal": principal, "digest": digest, "size_bytes": size_bytes}
            session.add(Upload(id=new_id("upload", now), create_time=now, finish_time=now, **values))

    async def _discard(self, upload_id: str) -> None:
        async with self._database.write() as session:
            await session.execute(delete(Upload).where(Upload.id == upload_id))
        self._path(upload_id).unlink(missing_ok=True)

    async def _find(self, principal: str, upload_id: str) -> Upload | None:
        mine = (Upload.principal == principal, Upload.id == upload_id)
        async with self._database.read() as session:
            return next(iter(await _unfinished(session, *mine)), None)

    def _is_stored(self, digest: str, size_bytes: int) -> bool:
        try:
            return self._artifacts.size(digest) == size_bytes
        except NotFound:
            return False

    def _size_here(self, upload: Upload) -> int:
        path = self._path(upload.id)
        return path.stat().st_size if path.exists() else 0

    def _path(self, upload_id: str) -> Path:
        return self._artifacts.staging / upload_id  # ids are ours: they come out of the table


def _no_upload(principal: str, upload_id: str) -> NotFound:
    return NotFound(f"no unfinished upload {upload_id[:200]!r} of {principal!r}; BeginUpload begins another")


async def _unfinished(session: AsyncSession, *conditions: ColumnElement[bool]) -> list[Upload]:
    return list(await session.scalars(select(Upload).where(Upload.finish_time.is_(None), *conditions)))


async def _append(upload: Upload, staged: StagedFile, chunks: AsyncIterator[bytes]) -> None:
    """What comes is written while more comes. Raises InvalidArgument before more is written than was stated."""

    async def stated() -> AsyncIterator[bytes]:
        size = staged.size
        async for data in chunks:
            size += len(data)
            if size > upload.size_bytes:
                raise InvalidArgument(_other_size(upload, size))
            yield data

    await write_behind(stated(), staged.append)


def _other_size(upload: Upload, size: int) -> str:
    return f"upload of {upload.digest}: its header says {upload.size_bytes} bytes, {size} came; state its size"
