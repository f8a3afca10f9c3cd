"""Streaming calls beside Streamlit's script thread, so that a Stop button can end one that is silent."""

import asyncio
import functools
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

from anthesis import AsyncClient, Settings

T = TypeVar("T")


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="playground-streams", daemon=True).start()
    return loop


def open_client(settings: Settings) -> AsyncClient:
    """A client whose calls run on the streams' loop."""

    async def make() -> AsyncClient:
        return AsyncClient(settings)

    return asyncio.run_coroutine_threadsafe(make(), _loop()).result()


class Stream(Generic[T]):
    """A call under way. Items wait in a queue with the time they came; `close` cancels the call at the server.

    Use it with `with`: however the block is left (Streamlit's rerun and stop are exceptions), the call ends.
    """

    def __init__(self, start: Callable[[], AsyncIterator[T]]) -> None:
        self._items: queue.SimpleQueue[tuple[float, T] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self.ended = False
        self._task = asyncio.run_coroutine_threadsafe(self._pump(start), _loop())

    async def _pump(self, start: Callable[[], AsyncIterator[T]]) -> None:
        try:
            async for item in start():
                self._items.put((time.monotonic(), item))
        except Exception as error:  # raised where the items are taken
            self._error = error
        finally:
            self._items.put(None)

    def take(self, timeout_s: float) -> list[tuple[float, T]]:
        """What has come, waiting for a first item at most `timeout_s`. Sets `ended`; raises the call's error."""
        taken: list[tuple[float, T]] = []
        try:
            item = self._items.get(timeout=timeout_s)
            while item is not None:
                taken.append(item)
                item = self._items.get_nowait()
        except queue.Empty:
            return taken
        self.ended = True
        if self._error and not taken:
            raise self._error
        if self._error:
            self._items.put(None)  # the next take raises it
            self.ended = False
        return taken

    def drain(self, quiet_s: float, at_most_s: float) -> Iterator[T]:
        """Items until none comes for `quiet_s`, the call ends, or `at_most_s` have passed."""
        until = time.monotonic() + at_most_s
        while not self.ended and (left := until - time.monotonic()) > 0:
            taken = self.take(min(quiet_s, left))
            if not taken:
                return
            yield from (item for _, item in taken)

    def close(self) -> None:
        self._task.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
