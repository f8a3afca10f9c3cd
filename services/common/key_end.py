"""A long call ends with the key that opened it: when that is revoked, or its time is over.

The key is verified again every few seconds, as new calls' keys are: answers are remembered, so the registry hears of it
once a minute. Where nobody can verify it now, the call goes on.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from contextvars import Context
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar

from services.common.auth import Authenticate, Principal, check_not_expired
from services.common.errors import Unauthenticated

CHECK_S = 5.0
log = logging.getLogger(__name__)
T = TypeVar("T")
_END: Any = object()


class KeyEnd:
    """`async with KeyEnd(…) as key`, and within `await key.meanwhile(work)`; or `key.limit(stream)` alone."""

    def __init__(
        self,
        authenticate: Authenticate,
        secret: str,
        principal: Principal,
        *,
        check_s: float = CHECK_S,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """principal: what `authenticate` has answered for the key's secret."""
        self._authenticate = authenticate
        self._secret = secret
        self._principal = principal
        self._check_s = check_s
        self._clock = clock
        self._ended: Unauthenticated | None = None
        self._working: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> Self:
        # Not for the caller's project, which may see no more than its own keys: as when the call was admitted.
        self._watching = asyncio.create_task(self._watch(), context=Context())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watching.cancel()

    async def meanwhile(self, work: Awaitable[T]) -> T:
        """What `work` gives. Raises Unauthenticated, saying why, once the key has ended; the work is cancelled then."""
        self._working = asyncio.current_task()
        assert self._working
        try:
            return await work
        except asyncio.CancelledError:
            if self._ended is None:
                raise
            self._working.uncancel()
            raise self._ended from None
        finally:
            self._working = None

    async def limit(self, stream: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """What `stream` yields. Raises Unauthenticated as `meanwhile` does; the stream is closed then."""
        async with self, aclosing(stream):
            while (item := await self.meanwhile(anext(stream, _END))) is not _END:
                yield item
                if self._ended:  # while whoever reads took the item
                    raise self._ended

    async def _watch(self) -> None:
        while self._ended is None:
            await asyncio.sleep(min(self._check_s, self._left_s()))
            try:
                check_not_expired(self._principal, self._clock())
                await self._authenticate(self._secret)
            except Unauthenticated as error:
                self._ended = error
                if self._working:
                    self._working.cancel()
            except Exception as error:  # that it cannot be verified now is not the key's end
                log.warning("key %s of a stream cannot be verified: %s", self._principal.key_id, error)

    def _left_s(self) -> float:
        """Until the key's expiry."""
        expires = self._principal.expire_time
        return max(0.0, (expires - self._clock()).total_seconds()) if expires else self._check_s
