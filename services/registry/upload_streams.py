"""Which uploads are being sent by a call now: one call each, and it can be ended."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ParamSpec, TypeVar

from anthesis.write_behind import at_rest

from services.common.errors import Aborted, DomainError

# Reading a long staged file again, or writing it to a bucket, takes minutes: nothing else waits behind these.
_THREADS = ThreadPoolExecutor(4, thread_name_prefix="uploads")
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(kw_only=True, slots=True)
class _Stream:
    task: "asyncio.Task[Any]"
    stopped: DomainError | None = None  # what its sender is told
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class UploadStreams:
    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}

    def __contains__(self, upload_id: str) -> bool:
        return upload_id in self._streams

    @asynccontextmanager
    async def alone(self, upload_id: str) -> AsyncIterator[None]:
        """The block is the one that sends the upload. Raises Aborted where another does, or `end` was called."""
        if upload_id in self._streams:
            raise Aborted(f"upload {upload_id} is being sent by another stream; BeginUpload gives you one of your own")
        task = asyncio.current_task()
        assert task is not None
        stream = self._streams[upload_id] = _Stream(task=task)
        try:
            yield
        except asyncio.CancelledError:
            if stream.stopped is None:
                raise
            task.uncancel()
            raise stream.stopped from None
        finally:
            del self._streams[upload_id]
            stream.ended.set()

    async def end(self, upload_id: str, why: DomainError) -> None:
        """Return when nobody sends the upload any more; who did is told `why`."""
        while stream := self._streams.get(upload_id):
            stream.stopped = why
            stream.task.cancel()
            await stream.ended.wait()


async def finish_in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """In a thread, which a cancelled caller waits for: what the function touches is at rest then."""
    running = asyncio.get_running_loop().run_in_executor(_THREADS, partial(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await at_rest(running)
        raise
