"""A cache in front of an async function."""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Memo(Generic[K, V]):
    """Remembers answers for `ttl_s`, the `max_size` last used; who asks meanwhile shares one call.

    Errors reach everyone who waits and are not remembered.
    """

    def __init__(
        self,
        load: Callable[[K], Awaitable[V]],
        *,
        max_size: int,
        ttl_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._max_size = max_size
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[K, tuple[float, asyncio.Future[V]]] = OrderedDict()

    async def get(self, key: K) -> V:
        entry = self._entries.get(key)
        if entry is None or self._clock() - entry[0] >= self._ttl_s:
            entry = self._entries[key] = (self._clock(), asyncio.ensure_future(self._load(key)))
        self._entries.move_to_end(key)
        if len(self._entries) > self._max_size:
            self._entries.popitem(last=False)
        try:
            return await asyncio.shield(entry[1])  # one who gives up does not cancel the call of the others
        except Exception:
            self.forget(key)
            raise

    def forget(self, key: K) -> None:
        self._entries.pop(key, None)
