"""A stream into a file: written in a thread while more comes, hashed in another meanwhile, and on its way to the disk
before the end."""

import asyncio
import contextlib
import io
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hashlib import _Hash

MAX_PENDING = 8  # chunks in memory; then the sender feels a slow disk
FLUSHED_BYTES = 8 << 20
_hashing: ThreadPoolExecutor


def _start_hashing() -> None:
    global _hashing
    _hashing = ThreadPoolExecutor(4, thread_name_prefix="hashing")


_start_hashing()
if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_start_hashing)


async def write_behind(chunks: AsyncIterator[bytes], append: Callable[[Sequence[bytes]], None]) -> None:
    """Give `append` what came while it was busy, in order, in a thread. What came is written however the stream ends.

    Raises what the stream or `append` raises; `append` is at rest then.
    """
    loop = asyncio.get_running_loop()
    writing: asyncio.Future[None] = loop.create_future()
    writing.set_result(None)
    pending: list[bytes] = []
    try:
        async for data in chunks:
            pending.append(data)
            if writing.done() or len(pending) == MAX_PENDING:
                await asyncio.shield(writing)
                writing, pending = loop.run_in_executor(None, append, pending), []
    finally:
        await at_rest(writing)
        if pending and not writing.exception():
            writing = loop.run_in_executor(None, append, pending)
            await at_rest(writing)
    writing.result()


async def at_rest(work: asyncio.Future[Any]) -> None:
    """Wait until it is done, however often the caller is cancelled meanwhile; then raise that."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled:
        raise cancelled


def write_hashed(file: io.FileIO, sha256: "_Hash", chunks: Iterable[bytes]) -> tuple["_Hash", int]:
    """Write at the file's position; return what `sha256`, which stays as it is, becomes, and the bytes.

    Blocking. Raises OSError, after which the file may hold a part of them.
    """
    hashing = _hashing.submit(_updated, sha256, chunks)
    size = 0
    for data in chunks:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        size += len(data)
    return hashing.result(), size


def _updated(sha256: "_Hash", chunks: Iterable[bytes]) -> "_Hash":
    updated = sha256.copy()
    for data in chunks:
        updated.update(data)
    return updated


class EarlyFlush:
    """Has the disk write what a file gathers meanwhile, so that a sync at its end waits for little."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._begun = 0  # up to here

    def wrote(self, size: int) -> None:
        """The file is `size` bytes long. Where the system takes no such advice, nothing is done."""
        if size - self._begun >= FLUSHED_BYTES and hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                # Linux begins to write a dirty range that it is told is not needed; it drops clean pages alone.
                os.posix_fadvise(self._descriptor, self._begun, size - self._begun, os.POSIX_FADV_DONTNEED)
            self._begun = size
