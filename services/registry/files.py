"""Files: artifacts with a name and a purpose, which belong to whoever made them. Others see none of them; admins do.

Those to fine-tune with are checked row by row when they are made, so that what a job is given is good.
"""

import asyncio
import json
from dataclasses import dataclass
from datetime import timedelta

from anthesis.rows import RowsSummary, check_rows, split_lines
from sqlalchemy import ColumnElement, delete, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.access import Permission
from services.common.artifacts import ArtifactStore, check_digest
from services.common.auth import Principal, current_project
from services.common.errors import InvalidArgument, NotFound
from services.registry import audit
from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.names import new_id
from services.registry.pages import Page, PageRequest, read_page
from services.registry.projects.artifacts import note_artifacts
from services.registry.references import keep
from services.registry.tables import File

FINE_TUNE, RESULTS = "fine-tune", "fine-tune-results"
MAX_FILENAME = 255
MAX_KEY = 200
MIN_LIFETIME_S, MAX_LIFETIME_S = 3600, 30 * 86_400  # OpenAI's
_EXAMPLE_KEYS = ("inputs", "messages", "prompt")


@dataclass(frozen=True, kw_only=True, slots=True)
class NewFile:
    filename: str
    purpose: str
    digest: str
    created_by: str  # principal
    lifetime_s: int | None = None  # None: for good
    idempotency_key: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileQuery:
    purpose: str = ""  # "": any
    after: str = ""  # a file's id: those behind it
    oldest_first: bool = False


class Files:
    def __init__(self, database: Database, artifacts: ArtifactStore, clock: Clock = utc_now) -> None:
        self._database = database
        self._artifacts = artifacts
        self._clock = clock

    async def create(self, new: NewFile) -> File:
        """Check every row of an uploaded artifact and keep it as a file. What has expired goes.

        Raises InvalidArgument listing all bad rows, NotFound for the artifact.
        """
        _check(new)
        found = await asyncio.to_thread(_inspect, self._artifacts, new.digest)
        now = self._clock()
        file = File(
            id=new_id("file", now),
            filename=new.filename,
            purpose=new.purpose,
            digest=new.digest,
            created_by=new.created_by,
            idempotency_key=new.idempotency_key or None,
            create_time=now,
            expire_time=None if new.lifetime_s is None else now + timedelta(seconds=new.lifetime_s),
            size_bytes=found.size_bytes,
            format=found.format,
            num_rows=found.rows.num_rows,
            longest_row_bytes=found.rows.longest_row_bytes,
        )
        async with self._database.write() as session:
            await keep(session, self._artifacts, [new.digest])
            await session.execute(delete(File).where(File.expire_time <= now))
            return await _insert(session, file)

    async def get(self, principal: Principal, file_id: str) -> File:
        """Raises NotFound, also for another's."""
        async with self._database.read() as session:
            return await self._find(session, principal, file_id)

    async def list_files(self, principal: Principal, query: FileQuery, page: PageRequest) -> Page[File]:
        found = select(File).where(*self._visible(principal))
        if query.purpose:
            found = found.where(File.purpose == query.purpose)
        if query.after:
            found = found.where(File.id > query.after if query.oldest_first else File.id < query.after)
        scope = f"files {query}"
        async with self._database.read() as session:
            return await read_page(session, found, File.id, page, scope=scope, newest_first=not query.oldest_first)

    async def delete(self, principal: Principal, file_id: str) -> None:
        """Its bytes stay for as long as something made of it needs them. Raises NotFound, also for another's."""
        async with self._database.write() as session:
            await session.delete(await self._find(session, principal, file_id))
            audit.record(session, self._clock(), f"file/{file_id}", "deleted")

    async def _find(self, session: AsyncSession, principal: Principal, file_id: str) -> File:
        query = select(File).where(File.id == file_id, *self._visible(principal))
        file = await session.scalar(query)
        if file is None:
            raise NotFound(f"no file {file_id[:200]!r} of {principal.name!r}; `anthesis files list` shows yours")
        return file

    def _visible(self, principal: Principal) -> list[ColumnElement[bool]]:
        lasting = or_(File.expire_time.is_(None), File.expire_time > self._clock())
        return [lasting] if Permission.ADMIN in principal.rights else [lasting, File.created_by == principal.name]


async def _insert(session: AsyncSession, file: File) -> File:
    """The file, or the one that was made with its idempotency key before."""
    file.project = current_project()
    values = {column.name: getattr(file, column.name) for column in File.__table__.columns}
    if not await insert_if_absent(session, File, **values):
        same = (File.created_by == file.created_by, File.idempotency_key == file.idempotency_key)
        return (await session.scalars(select(File).where(*same))).one()
    await note_artifacts(session, file.project, {file.digest: file.size_bytes} if file.project else {})
    audit.record(session, file.create_time, f"file/{file.id}", file.digest)
    return file


def _check(new: NewFile) -> None:
    """What can be checked without reading the artifact."""
    check_digest(new.digest)
    if new.purpose != FINE_TUNE:
        raise InvalidArgument(f"purpose {new.purpose[:40]!r} is not supported; use {FINE_TUNE!r}")
    name = new.filename
    if not name or len(name) > MAX_FILENAME or name in (".", "..") or not name.isprintable() or {"/", "\\"} & set(name):
        raise InvalidArgument(
            f"filename {name[:100]!r} is not allowed; use 1 to {MAX_FILENAME} printable characters without '/' and '\\'"
        )
    if new.lifetime_s is not None and not MIN_LIFETIME_S <= new.lifetime_s <= MAX_LIFETIME_S:
        raise InvalidArgument(
            f"lifetime_seconds={new.lifetime_s} is out of range; choose {MIN_LIFETIME_S} to {MAX_LIFETIME_S}"
        )
    if len(new.idempotency_key) > MAX_KEY:
        raise InvalidArgument(f"idempotency_key has {len(new.idempotency_key)} characters; use at most {MAX_KEY}")


@dataclass(frozen=True, slots=True)
class _Inspected:
    format: str
    size_bytes: int
    rows: RowsSummary


def _inspect(artifacts: ArtifactStore, digest: str) -> _Inspected:
    """What the artifact's rows are. Blocking. Raises InvalidArgument listing the bad ones, NotFound."""
    size = artifacts.size(digest)
    row_format = _format_of(next(split_lines(artifacts.read(digest)), None))
    try:
        return _Inspected(row_format, size, check_rows(artifacts.read(digest), row_format))
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def _format_of(line: bytes | None) -> str:
    """What a first row is; one that is nothing is told what an example lacks."""
    try:
        row = json.loads((line or b"").decode())
    except (ValueError, RecursionError):
        return "MULTITASK"
    is_text = isinstance(row, dict) and "text" in row and not any(key in row for key in _EXAMPLE_KEYS)
    return "TEXT" if is_text else "MULTITASK"
