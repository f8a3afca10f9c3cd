"""Datasets: JSONL artifacts whose every row was checked against its format. A version never changes."""

import asyncio
from typing import Any

from anthesis.rows import RowsSummary, check_rows
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.artifacts import ArtifactStore, check_digest
from services.common.auth import current_project
from services.common.errors import AlreadyExists, InvalidArgument
from services.registry import audit
from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.dataset_names import find_dataset, find_newest, newest_datasets, no_dataset
from services.registry.dataset_preview import Preview, preview
from services.registry.names import check_name
from services.registry.pages import Page, PageRequest, read_page
from services.registry.projects.artifacts import note_artifacts
from services.registry.projects.quotas import check_stored_bytes
from services.registry.projects.session import check_usable
from services.registry.references import keep
from services.registry.tables import Dataset
from services.registry.training_data import check_mixture


class Datasets:
    def __init__(self, database: Database, artifacts: ArtifactStore, clock: Clock = utc_now) -> None:
        self._database = database
        self._artifacts = artifacts
        self._clock = clock

    async def create(self, name: str, dataset_format: str, digest: str, created_by: str = "") -> Dataset:
        """Check every row of artifact `digest`, or a mixture's templates, and register it as the next version.

        What the newest version has is no error. Raises InvalidArgument listing all bad rows, NotFound for the artifact,
        AlreadyExists where the name is of another format.
        """
        check_name("dataset", name)
        check_digest(digest)
        async with self._database.read() as session:
            if same := await _same(session, name, dataset_format, digest):
                return same
        summary, size = await asyncio.to_thread(self._check, dataset_format, digest)
        if dataset_format == "MIXTURE":
            summary = await check_mixture(self._database, self._artifacts, digest)
        row = {
            "dataset": name,
            "format": dataset_format,
            "digest": digest,
            "num_rows": summary.num_rows,
            "size_bytes": size,
            "languages": sorted(summary.languages),
            "created_by": created_by,
            "create_time": self._clock(),
        }
        async with self._database.write() as session:
            await keep(session, self._artifacts, [digest])
            return await add_version(session, row)

    def _check(self, dataset_format: str, digest: str) -> tuple[RowsSummary, int]:
        size = self._artifacts.size(digest)
        try:
            return check_rows(self._artifacts.read(digest), dataset_format), size
        except ValueError as error:
            raise InvalidArgument(str(error)) from None

    async def get(self, name: str) -> Dataset:
        """The newest version, or "name@2". Raises NotFound."""
        async with self._database.read() as session:
            return await find_dataset(session, name)

    async def list_datasets(self, page: PageRequest) -> Page[Dataset]:
        """The newest version of each."""
        async with self._database.read() as session:
            return await read_page(session, newest_datasets(), Dataset.dataset, page, scope="datasets")

    async def list_versions(self, name: str, page: PageRequest) -> Page[Dataset]:
        """Newest first. Raises NotFound."""
        async with self._database.read() as session:
            if await find_newest(session, name) is None:
                raise no_dataset(name)
            query = select(Dataset).where(Dataset.dataset == name)
            scope = f"versions of dataset {name}"
            return await read_page(session, query, Dataset.number, page, scope=scope, newest_first=True)

    async def preview(self, name: str, num_rows: int, seed: int | None) -> tuple[Dataset, Preview]:
        """The first rows, or with a seed rows drawn at random. Raises NotFound, FailedPrecondition for YAML."""
        dataset = await self.get(name)
        return dataset, await asyncio.to_thread(preview, self._artifacts, dataset, num_rows, seed)


async def add_version(session: AsyncSession, row: dict[str, Any]) -> Dataset:
    """The next version of a dataset, of rows that were checked; the newest where it is this one. Call it after `keep`.

    row: its columns, but for name, number and project. Raises AlreadyExists where the name is of another format.
    """
    name, digest, size = row["dataset"], row["digest"], row["size_bytes"]
    while not (same := await _same(session, name, row["format"], digest)):
        newest = await find_newest(session, name)
        await check_usable(session, (Dataset, f"{name}@1"))
        number, project = (newest.number + 1, newest.project) if newest else (1, current_project())
        values = {"name": f"{name}@{number}", "number": number, "project": project}
        if await insert_if_absent(session, Dataset, **values, **row):
            await check_stored_bytes(session, {digest: size})
            await note_artifacts(session, project, {digest: size})
            audit.record(session, row["create_time"], f"dataset/{name}", f"version {number}: {digest}")
    return same


async def _same(session: AsyncSession, name: str, dataset_format: str, digest: str) -> Dataset | None:
    """The newest version where it is this one. Raises AlreadyExists when it is of another format."""
    newest = await find_newest(session, name)
    if newest and newest.format != dataset_format:
        what = f"dataset {name!r} is {newest.format}, and a version of it cannot be {dataset_format}"
        raise AlreadyExists(f"{what}; choose another name")
    return newest if newest and newest.digest == digest else None
