"""Artifacts between a gRPC stream and the blocking store, one chunk at a time, in a thread."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from anthesis.v1 import registry_pb2

from services.common.artifacts import ArtifactStore
from services.common.errors import InvalidArgument


async def receive(
    artifacts: ArtifactStore, parts: AsyncIterator[registry_pb2.UploadArtifactRequest]
) -> tuple[registry_pb2.UploadHeader, bool]:
    """Store what the stream carries; return its header and whether the artifact was there before.

    The bytes are verified and written even then: that repairs a damaged artifact. Raises InvalidArgument, DataLoss.
    """
    first = await anext(parts, None)
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidArgument("the first message of an upload carries the header: digest and size_bytes")
    header = first.header
    existed = await asyncio.to_thread(artifacts.exists, header.digest)
    loop = asyncio.get_running_loop()

    def chunks() -> Iterator[bytes]:
        """Asks for the next message only when the last one is written: the sender feels a slow disk."""
        size = 0
        while part := asyncio.run_coroutine_threadsafe(_next(parts), loop).result():
            size += len(part.data)
            if part.WhichOneof("part") != "data" or size > header.size_bytes:
                raise InvalidArgument(
                    f"upload of {header.digest}: its header says {header.size_bytes} bytes, message "
                    f"{part.WhichOneof('part')!r} makes them {size}; send the header once, then the data"
                )
            yield part.data
        if size != header.size_bytes:
            raise InvalidArgument(
                f"upload of {header.digest}: its header says {header.size_bytes} bytes, {size} came; send it again"
            )

    await asyncio.to_thread(artifacts.write, header.digest, chunks())
    return header, existed


async def _next(parts: AsyncIterator[Any]) -> Any:
    return await anext(parts, None)


async def send(artifacts: ArtifactStore, digest: str) -> AsyncIterator[bytes]:
    """An artifact's bytes. Raises NotFound; DataLoss at the end when they are damaged."""
    chunks = artifacts.read(digest)
    while chunk := await asyncio.to_thread(next, chunks, b""):
        yield chunk
