"""Training data: rows by name, in versions, with a look into them and reports on them."""

import asyncio
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from anthesis.artifacts import CHUNK_BYTES, Artifacts, Progress
from anthesis.errors import InvalidArgumentError, NotFoundError
from anthesis.names import check_name
from anthesis.row_files import as_jsonl
from anthesis.row_files.limits import Limits
from anthesis.rows import check_rows
from anthesis.rpc import PAGE_SIZE, pages, unary
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub


def pinned(dataset: pb.Dataset) -> str:
    """ "udhr@2": the name that means this version, whatever comes later."""
    return f"{dataset.name}@{dataset.version}"


class Datasets:
    """Datasets as the registry keeps them: validated row by row when they are made."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = RegistryServiceStub(channel)
        self._artifacts = Artifacts(channel)

    async def upload(
        self,
        name: str,
        path: str | os.PathLike[str],
        format: "pb.DatasetFormat.ValueType",
        *,
        columns: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        progress: Progress | None = None,
    ) -> pb.Dataset:
        """Check a file of rows (.jsonl, .csv, also .gz or .zst, or .parquet), upload it as JSONL and register it.

        A name that is there gets its next version. columns: field -> column of a table, where they differ. limits: on
        what is unpacked. Raises InvalidArgumentError that lists every bad row and why; nothing was sent then.
        """
        with tempfile.TemporaryDirectory(prefix="anthesis-") as folder:
            rows = await asyncio.to_thread(_prepare, name, Path(path), format, columns or {}, limits, Path(folder))
            artifact = await self._artifacts.upload(rows, progress=progress)
        return await self.create(name, artifact.digest, format)

    async def create(self, name: str, digest: str, format: "pb.DatasetFormat.ValueType") -> pb.Dataset:
        """Register an uploaded file of JSONL (or YAML) as a dataset, or as its next version."""
        request = pb.CreateDatasetRequest(name=name, digest=digest, format=format)
        return (await unary(self._stub.CreateDataset(request))).dataset

    async def get(self, name: str) -> pb.Dataset:
        """The newest version, or that of "name@2". Raises NotFoundError."""
        return (await unary(self._stub.GetDataset(pb.GetDatasetRequest(name=name)))).dataset

    async def list(self) -> Sequence[pb.Dataset]:
        """The newest version of each."""
        request = pb.ListDatasetsRequest(page_size=PAGE_SIZE)
        return [dataset async for page in pages(self._stub.ListDatasets, request) for dataset in page.datasets]

    async def versions(self, name: str) -> Sequence[pb.Dataset]:
        """Of one dataset, newest first. Raises NotFoundError."""
        request = pb.ListDatasetVersionsRequest(name=name, page_size=PAGE_SIZE)
        return [dataset async for page in pages(self._stub.ListDatasetVersions, request) for dataset in page.datasets]

    async def preview(self, name: str, *, num_rows: int = 10, seed: int | None = None) -> pb.PreviewDatasetResponse:
        """The first rows, long fields cut; with a seed, rows drawn at random.

        Raises FailedPreconditionError for YAML.
        """
        request = pb.PreviewDatasetRequest(name=name, num_rows=num_rows, seed=seed)
        return await unary(self._stub.PreviewDataset(request))

    async def report(self, name: str) -> dict[str, Any]:
        """The newest report on a version's rows (docs/datasets.md). Raises NotFoundError where there is none yet."""
        dataset = await self.get(name)
        if not dataset.report_digest:
            what = f"no report on {pinned(dataset)} yet"
            raise NotFoundError(f"{what}; have one made: `anthesis datasets validate {pinned(dataset)} --base MODEL`")
        found: dict[str, Any] = json.loads(await self._artifacts.read(dataset.report_digest))
        return found


def _prepare(
    name: str,
    path: Path,
    format: "pb.DatasetFormat.ValueType",
    columns: Mapping[str, str],
    limits: Limits | None,
    folder: Path,
) -> Path:
    """The rows as JSONL, and what the registry would refuse found before it is sent. Blocking."""
    dataset_format = pb.DatasetFormat.Name(format).removeprefix("DATASET_FORMAT_")
    try:
        check_name("dataset", name)
        rows = as_jsonl(path, dataset_format, columns, folder, limits)
        with rows.open("rb") as file:
            check_rows(iter(lambda: file.read(CHUNK_BYTES), b""), dataset_format)
    except ValueError as error:
        called = ", ".join(f"{field!r} is column {column!r}" for field, column in columns.items())
        raise InvalidArgumentError(f"{error}\n({called} of {path.name})" if columns else str(error)) from None
    return rows
