"""Content-addressed files: weights, tokenizers, datasets."""

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path

import grpc

from anthesis.allocator import keep_freed_memory
from anthesis.errors import AbortedError, AnthesisError, CancelledError, DataLossError, NotFoundError, UnavailableError
from anthesis.partial_file import PartialFile
from anthesis.presigned import FAILURES, read_url
from anthesis.rpc import PAGE_SIZE, pages, stream, unary
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub
from anthesis.write_behind import write_behind

CHUNK_BYTES = 1 << 20  # the most one message may carry
ATTEMPTS = 4  # in a row that get no further
URL_LIFETIME_S = 3600
BROKEN_OFF = (UnavailableError, CancelledError)  # the latter is what a registry that shuts down says

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in total)."""


def digest_file(path: Path) -> str:
    """sha256 of a file: "sha256:<64 hex>"."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _holds(path: Path, digest: str) -> bool:
    return path.is_file() and digest_file(path) == digest


class Artifacts:
    """Uploads and downloads, verified by sha256; what is there already is not sent again, what broke off goes on."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = RegistryServiceStub(channel)

    async def get(self, digest: str) -> pb.Artifact:
        """Raises NotFoundError."""
        return (await unary(self._stub.GetArtifact(pb.GetArtifactRequest(digest=digest)))).artifact

    async def upload(
        self, path: str | os.PathLike[str], *, again: bool = False, progress: Progress | None = None
    ) -> pb.Artifact:
        """Store a file. One that broke off, here or there, goes on where it was; `again` sends what is there, too.

        Raises ResourceExhaustedError (too many unfinished ones, or a full disk), DataLossError.
        """
        keep_freed_memory()
        file_path = Path(path)
        digest = await asyncio.to_thread(digest_file, file_path)
        begin = pb.BeginUploadRequest(digest=digest, size_bytes=os.stat(file_path).st_size, again=again)
        header = pb.UploadHeader(digest=digest, size_bytes=begin.size_bytes)
        attempts = _Attempts()
        while True:
            try:
                begun = await unary(self._stub.BeginUpload(begin))
                if begun.exists:
                    return pb.Artifact(digest=digest, size_bytes=begin.size_bytes)
                header.upload_id, header.offset_bytes = begun.upload_id, begun.offset_bytes
                return (await unary(self._stub.UploadArtifact(_parts(file_path, header, progress)))).artifact
            except BROKEN_OFF as error:
                begin.upload_id = header.upload_id
                await attempts.after(error, header.offset_bytes)
            except (AbortedError, NotFoundError) as error:  # another process with our key sends it, or has sent it
                begin.upload_id = ""
                await attempts.after(error, header.offset_bytes)

    async def upload_bytes(self, data: bytes) -> pb.Artifact:
        """Store bytes that lie in memory."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()

        async def parts() -> AsyncIterator[pb.UploadArtifactRequest]:
            yield pb.UploadArtifactRequest(header=pb.UploadHeader(digest=digest, size_bytes=len(data)))
            for start in range(0, len(data), CHUNK_BYTES):
                yield pb.UploadArtifactRequest(data=data[start : start + CHUNK_BYTES])

        return (await unary(self._stub.UploadArtifact(parts()))).artifact

    async def list_uploads(self) -> Sequence[pb.Upload]:
        """One's own that are not finished, oldest first."""
        request = pb.ListUploadsRequest(page_size=PAGE_SIZE)
        return [upload async for page in pages(self._stub.ListUploads, request) for upload in page.uploads]

    async def abandon_upload(self, upload_id: str) -> None:
        """Drop one of these with what came of it; its sender gets FailedPreconditionError. Raises NotFoundError."""
        await unary(self._stub.AbandonUpload(pb.AbandonUploadRequest(id=upload_id)))

    async def download(self, digest: str, path: str | os.PathLike[str], *, progress: Progress | None = None) -> Path:
        """Write an artifact to `path`, whole and verified or not at all; return the path.

        What came before a break lies in `<path>.part`, and the next call goes on from there. Raises NotFoundError, or
        DataLossError when the bytes have another sha256.
        """
        keep_freed_memory()
        target = Path(path)
        if await asyncio.to_thread(_holds, target, digest):
            return target
        request = pb.GetArtifactRequest(digest=digest, url_lifetime_seconds=URL_LIFETIME_S)
        found = await unary(self._stub.GetArtifact(request))
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = await asyncio.to_thread(PartialFile, target, found.artifact.size_bytes)
        try:
            resumed = partial.size > 0
            await self._fill(partial, found, progress)
            if partial.digest != digest and resumed:  # what lay here was damaged, or of another artifact
                partial.clear()
                await self._fill(partial, found, progress)
            if partial.digest != digest:
                raise DataLossError(f"what came hashes to {partial.digest}, not {digest}; download again")
            await asyncio.to_thread(partial.finish)
        except DataLossError:
            partial.clear()
            raise
        finally:
            partial.close()
        return target

    async def read(self, digest: str) -> bytes:
        """A small artifact's bytes. Raises NotFoundError, or DataLossError when they have another sha256."""
        file = io.BytesIO()
        async with aclosing(self._receive(digest, 0)) as parts:
            async for data in parts:
                file.write(data)
        if (found := f"sha256:{hashlib.sha256(file.getbuffer()).hexdigest()}") != digest:
            raise DataLossError(f"{file.tell()} bytes came and hash to {found}, not {digest}; download again")
        return file.getvalue()

    async def verify(
        self, digests: Iterable[str] = (), *, version: str = "", all: bool = False
    ) -> AsyncGenerator[pb.VerifyArtifactsResponse, None]:
        """Have artifacts hashed again where they lie: some, or those of a version, or (an admin) all there are.

        Yields each as it is found: OK, MISSING or DAMAGED, and what needs it.
        """
        request = pb.VerifyArtifactsRequest(digests=digests, version=version, all=all)
        async with stream(self._stub.VerifyArtifacts(request)) as parts:
            async for part in parts:
                yield part

    async def collect_garbage(
        self, *, delete: bool = False, older_than: timedelta | None = None
    ) -> AsyncGenerator[pb.CollectGarbageResponse, None]:
        """What nothing needs and is older (None: than a day): told, or deleted. Needs an admin's key."""
        request = pb.CollectGarbageRequest(delete=delete)
        if older_than is not None:
            request.older_than_seconds = int(older_than.total_seconds())
        async with stream(self._stub.CollectGarbage(request)) as parts:
            async for part in parts:
                yield part

    async def _fill(self, partial: PartialFile, found: pb.GetArtifactResponse, progress: Progress | None) -> None:
        """Append what is missing: from the store where it gave a URL, else, or if that fails, from the registry."""
        total, attempts, url = found.artifact.size_bytes, _Attempts(), found.url
        while (start := partial.size) < total:
            try:
                source = _read_url(url, start) if url else self._receive(found.artifact.digest, start)
                async with aclosing(source) as parts:
                    await _append(partial, parts, total, progress)
                if not url:
                    return  # what is missing, no one has
                url = ""
            except BROKEN_OFF as error:
                await attempts.after(error, start)
            except FAILURES:
                if not url:
                    raise
                url = ""

    async def _receive(self, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        request = pb.DownloadArtifactRequest(digest=digest, offset_bytes=offset)
        async with stream(self._stub.DownloadArtifact(request)) as parts:
            async for part in parts:
                yield part.data


class _Attempts:
    """Counts those that got no further, and waits between them."""

    def __init__(self) -> None:
        self._furthest = -1
        self._failed = 0

    async def after(self, error: AnthesisError, began_at: int) -> None:
        """Return when it is time for the next one. Raises `error` when ATTEMPTS in a row began where others did."""
        self._failed = 1 if began_at > self._furthest else self._failed + 1
        self._furthest = max(self._furthest, began_at)
        if self._failed >= ATTEMPTS:
            raise error
        await asyncio.sleep(2 ** (self._failed - 1))


async def _read_url(url: str, offset: int) -> AsyncGenerator[bytes, None]:
    chunks = read_url(url, offset)
    while chunk := await asyncio.to_thread(next, chunks, b""):
        yield chunk


async def _append(partial: PartialFile, parts: AsyncIterator[bytes], total: int, progress: Progress | None) -> None:
    async def told() -> AsyncIterator[bytes]:
        done = partial.size
        async for data in parts:
            done += len(data)
            yield data
            if progress:
                progress(done, total)

    await write_behind(told(), partial.append)


async def _parts(
    path: Path, header: pb.UploadHeader, progress: Progress | None
) -> AsyncIterator[pb.UploadArtifactRequest]:
    """The header, then the file from its offset on, each chunk read while the last one goes out."""
    done = header.offset_bytes
    loop = asyncio.get_running_loop()
    yield pb.UploadArtifactRequest(header=header)
    with path.open("rb") as file:
        file.seek(done)
        chunk = await loop.run_in_executor(None, file.read, CHUNK_BYTES)
        while chunk:
            ahead = loop.run_in_executor(None, file.read, CHUNK_BYTES)
            yield pb.UploadArtifactRequest(data=chunk)
            done += len(chunk)
            if progress:
                progress(done, header.size_bytes)
            chunk = await ahead
