"""Training data: JSONL files by name."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import grpc

from anthesis.artifacts import CHUNK_BYTES, Artifacts, Progress
from anthesis.errors import InvalidArgumentError
from anthesis.names import check_name
from anthesis.rows import check_rows
from anthesis.rpc import PAGE_SIZE, pages, unary
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub


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
        progress: Progress | None = None,
    ) -> pb.Dataset:
        """Check a JSONL file, upload it and register it.

        Raises InvalidArgumentError that lists every bad row and why; nothing was sent then.
        """
        await asyncio.to_thread(_check, name, Path(path), format)
        artifact = await self._artifacts.upload(path, progress=progress)
        return await self.create(name, artifact.digest, format)

    async def create(self, name: str, digest: str, format: "pb.DatasetFormat.ValueType") -> pb.Dataset:
        """Register an uploaded file."""
        request = pb.CreateDatasetRequest(name=name, digest=digest, format=format)
        return (await unary(self._stub.CreateDataset(request))).dataset

    async def get(self, name: str) -> pb.Dataset:
        """Raises NotFoundError."""
        return (await unary(self._stub.GetDataset(pb.GetDatasetRequest(name=name)))).dataset

    async def list(self) -> Sequence[pb.Dataset]:
        request = pb.ListDatasetsRequest(page_size=PAGE_SIZE)
        return [dataset async for page in pages(self._stub.ListDatasets, request) for dataset in page.datasets]


def _check(name: str, path: Path, format: "pb.DatasetFormat.ValueType") -> None:
    """What the registry would refuse, found before it is sent. Blocking."""
    try:
        check_name("dataset", name)
        with path.open("rb") as file:
            chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
            check_rows(chunks, pb.DatasetFormat.Name(format).removeprefix("DATASET_FORMAT_"))
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from None
