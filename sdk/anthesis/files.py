"""Files of OpenAI's files API: one's own, to fine-tune with, and the metrics of jobs that did."""

import os
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path

import grpc

from anthesis.artifacts import Artifacts, Progress
from anthesis.rpc import PAGE_SIZE, pages, unary
from anthesis.v1 import file_pb2 as pb
from anthesis.v1.file_pb2_grpc import FileServiceStub

FINE_TUNE = "fine-tune"


class Files:
    """What `openai.OpenAI().files` has at the gateway, over gRPC."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = FileServiceStub(channel)
        self._artifacts = Artifacts(channel)

    async def upload(self, path: str | os.PathLike[str], *, progress: Progress | None = None) -> pb.File:
        """Send a JSONL file to fine-tune with. Raises InvalidArgumentError that lists every bad row and why."""
        artifact = await self._artifacts.upload(path, progress=progress)
        request = pb.CreateFileRequest(
            filename=Path(path).name, purpose=FINE_TUNE, digest=artifact.digest, idempotency_key=uuid.uuid4().hex
        )
        return (await unary(self._stub.CreateFile(request))).file

    async def list(self, purpose: str = "") -> AsyncGenerator[pb.File, None]:
        """Newest first; of one purpose if it is given."""
        request = pb.ListFilesRequest(page_size=PAGE_SIZE, purpose=purpose)
        async for page in pages(self._stub.ListFiles, request):
            for file in page.files:
                yield file

    async def get(self, file_id: str) -> pb.File:
        """Raises NotFoundError."""
        return (await unary(self._stub.GetFile(pb.GetFileRequest(id=file_id)))).file

    async def download(self, file_id: str, path: str | os.PathLike[str], *, progress: Progress | None = None) -> Path:
        """Write its bytes to `path`. Raises NotFoundError."""
        return await self._artifacts.download((await self.get(file_id)).digest, path, progress=progress)

    async def delete(self, file_id: str) -> None:
        """What was made of it stays. Raises NotFoundError."""
        await unary(self._stub.DeleteFile(pb.DeleteFileRequest(id=file_id)))
