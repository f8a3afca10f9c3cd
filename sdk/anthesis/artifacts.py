"""Content-addressed files: weights, tokenizers, datasets."""

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

import grpc

from anthesis.errors import DataLossError, NotFoundError, UnavailableError
from anthesis.rpc import stream, unary
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub

CHUNK_BYTES = 1 << 20  # the most one message may carry
UPLOAD_ATTEMPTS = 4

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in total)."""


def digest_file(path: Path) -> str:
    """sha256 of a file: "sha256:<64 hex>"."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _holds(path: Path, digest: str) -> bool:
    return path.is_file() and digest_file(path) == digest


class Artifacts:
    """Uploads and downloads, verified by sha256; what is there already is not sent again."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = RegistryServiceStub(channel)

    async def get(self, digest: str) -> pb.Artifact:
        """Raises NotFoundError."""
        return (await unary(self._stub.GetArtifact(pb.GetArtifactRequest(digest=digest)))).artifact

    async def upload(self, path: str | os.PathLike[str], *, progress: Progress | None = None) -> pb.Artifact:
        """Store a file; an upload that the registry's restart cuts off begins again."""
        file_path = Path(path)
        digest = await asyncio.to_thread(digest_file, file_path)
        for attempt in range(UPLOAD_ATTEMPTS):
            try:
                return await self.get(digest)
            except NotFoundError:
                pass
            try:
                return (await unary(self._stub.UploadArtifact(_parts(file_path, digest, progress)))).artifact
            except UnavailableError:
                if attempt == UPLOAD_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(2**attempt)
        raise AssertionError("the last attempt returns or raises")

    async def upload_bytes(self, data: bytes) -> pb.Artifact:
        """Store bytes that lie in memory."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()

        async def parts() -> AsyncIterator[pb.UploadArtifactRequest]:
            yield pb.UploadArtifactRequest(header=pb.UploadHeader(digest=digest, size_bytes=len(data)))
            for start in range(0, len(data), CHUNK_BYTES):
                yield pb.UploadArtifactRequest(data=data[start : start + CHUNK_BYTES])

        return (await unary(self._stub.UploadArtifact(parts()))).artifact

    async def download(self, digest: str, path: str | os.PathLike[str], *, progress: Progress | None = None) -> Path:
        """Write an artifact to `path`, whole and verified or not at all; return the path.

        Raises NotFoundError, or DataLossError when the bytes have another sha256.
        """
        target = Path(path)
        if await asyncio.to_thread(_holds, target, digest):
            return target
        total = (await self.get(digest)).size_bytes
        partial = target.with_name(target.name + ".part")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                await self._receive(digest, file, total, progress)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        return target

    async def read(self, digest: str) -> bytes:
        """A small artifact's bytes. Raises NotFoundError, or DataLossError when they have another sha256."""
        file = io.BytesIO()
        await self._receive(digest, file, (await self.get(digest)).size_bytes, None)
        return file.getvalue()

    async def _receive(self, digest: str, file: BinaryIO, total: int, progress: Progress | None) -> None:
        sha256, done = hashlib.sha256(), 0
        async with stream(self._stub.DownloadArtifact(pb.DownloadArtifactRequest(digest=digest))) as parts:
            async for part in parts:
                sha256.update(part.data)
                file.write(part.data)
                done += len(part.data)
                if progress:
                    progress(done, total)
        if (found := f"sha256:{sha256.hexdigest()}") != digest:
            raise DataLossError(f"{done} of {total} bytes came and hash to {found}, not {digest}; download again")


async def _parts(path: Path, digest: str, progress: Progress | None) -> AsyncIterator[pb.UploadArtifactRequest]:
    total, done = os.stat(path).st_size, 0
    yield pb.UploadArtifactRequest(header=pb.UploadHeader(digest=digest, size_bytes=total))
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield pb.UploadArtifactRequest(data=chunk)
            done += len(chunk)
            if progress:
                progress(done, total)
