"""Datasets: JSONL artifacts whose every row was checked against its format."""

import asyncio

from anthesis.rows import RowsSummary, check_rows
from sqlalchemy import select

from services.common.artifacts import ArtifactStore, check_digest
from services.common.auth import current_project
from services.common.errors import AlreadyExists, InvalidArgument, NotFound
from services.registry import audit
from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.names import check_name
from services.registry.pages import Page, PageRequest, read_page
from services.registry.projects.artifacts import note_artifacts
from services.registry.projects.quotas import check_stored_bytes
from services.registry.references import keep
from services.registry.tables import Dataset
from services.registry.training_data import check_mixture


class Datasets:
    def __init__(self, database: Database, artifacts: ArtifactStore, clock: Clock = utc_now) -> None:
        self._database = database
        self._artifacts = artifacts
        self._clock = clock

    async def create(self, name: str, dataset_format: str, digest: str) -> Dataset:
        """Check every row of artifact `digest`, or a mixture's templates, and register it; again is no error.

        Raises InvalidArgument listing all bad rows, NotFound for the artifact, AlreadyExists for other content.
        """
        check_name("dataset", name)
        check_digest(digest)
        await self._refuse_other(name, dataset_format, digest)
        summary, size = await asyncio.to_thread(self._check, dataset_format, digest)
        if dataset_format == "MIXTURE":
            summary = await check_mixture(self._database, self._artifacts, digest)
        async with self._database.write() as session:
            await keep(session, self._artifacts, [digest])
            created = await insert_if_absent(
                session,
                Dataset,
                name=name,
                format=dataset_format,
                digest=digest,
                num_rows=summary.num_rows,
                size_bytes=size,
                languages=sorted(summary.languages),
                create_time=self._clock(),
            )
            if created:
                await check_stored_bytes(session, {digest: size})
                await note_artifacts(session, current_project(), {digest: size})
                audit.record(session, self._clock(), f"dataset/{name}", digest)
        return await self._refuse_other(name, dataset_format, digest) or await self.get(name)

    async def _refuse_other(self, name: str, dataset_format: str, digest: str) -> Dataset | None:
        """The dataset `name` when it is this one. Raises AlreadyExists when it is another."""
        async with self._database.read() as session:
            found = await session.get(Dataset, name)
        if found and (found.digest, found.format) != (digest, dataset_format):
            raise AlreadyExists(
                f"dataset {name!r} exists with other content ({found.format}, {found.digest}); choose another name"
            )
        return found

    def _check(self, dataset_format: str, digest: str) -> tuple[RowsSummary, int]:
        size = self._artifacts.size(digest)
        try:
            return check_rows(self._artifacts.read(digest), dataset_format), size
        except ValueError as error:
            raise InvalidArgument(str(error)) from None

    async def get(self, name: str) -> Dataset:
        """Raises NotFound."""
        async with self._database.read() as session:
            dataset = await session.get(Dataset, name)
        if dataset is None:
            raise NotFound(f"no dataset {name[:200]!r}; upload it: `anthesis datasets upload`")
        return dataset

    async def list_datasets(self, page: PageRequest) -> Page[Dataset]:
        async with self._database.read() as session:
            return await read_page(session, select(Dataset), Dataset.name, page, scope="datasets")
