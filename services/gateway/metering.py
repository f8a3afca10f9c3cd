"""What is used, counted for the registry, and what a project may still use.

The gateway counts by itself and tells the registry every few seconds, which answers with what all gateways have told.
So a project can go over: in requests a minute by as many times as there are gateways, since each counts its own; in
tokens a day by what other gateways counted since they last told, and by what requests still draw that had begun before.
"""

import asyncio
import logging
import math
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

from services.common.auth import current_principal
from services.common.errors import InvalidArgument, ResourceExhausted

LANGUAGE_HEADER = "x-anthesis-language"
MINUTE_S = 60.0
FORGET_AFTER_S = 120.0  # a project that nobody called for this long is asked for again
_LANGUAGE = re.compile(r"[A-Za-z0-9+#._-]{1,40}")
_language: ContextVar[str] = ContextVar("language", default="")
log = logging.getLogger(__name__)


class QuotaExceeded(ResourceExhausted):
    """The caller's project has used what it may; the message says what, and when there is more."""


@dataclass(frozen=True, slots=True)
class Used:
    """By whom, with what, in which language: what usage is added up by."""

    project: str
    principal: str
    model_version: str
    language: str


@dataclass(slots=True)
class Counts:
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def add(self, more: "Counts") -> None:
        self.requests += more.requests
        self.prompt_tokens += more.prompt_tokens
        self.completion_tokens += more.completion_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowance:
    """A project's quotas (0: none) and what it has used, as far as the registry knows."""

    requests_per_minute: int = 0
    tokens_per_day: int = 0
    tokens_today: int = 0  # UTC


class UsageClient(Protocol):
    async def report(
        self, batch_id: str, used: Mapping[Used, Counts], projects: Sequence[str]
    ) -> Mapping[str, Allowance]:
        """Add `used` to what is known, once for each `batch_id`; answer what `projects` may use."""


@dataclass(slots=True)
class _Project:
    allowance: Allowance
    called: float
    window_start: float = -math.inf
    window_requests: int = 0


@dataclass(slots=True)
class _Batch:
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    used: dict[Used, Counts] = field(default_factory=dict)

    def tokens(self, project: str) -> int:
        return sum(counts.tokens for used, counts in self.used.items() if used.project == project)


class Meter:
    def __init__(
        self,
        client: UsageClient,
        *,
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._every_s = every_s
        self._clock = clock
        self._now = now
        self._projects: dict[str, _Project] = {}
        self._counting = _Batch()
        self._sent: _Batch | None = None  # sent, and not known to have arrived: it goes again under the same id
        self._flushing = asyncio.Lock()

    async def admit(self) -> None:
        """Count a request of the current caller's project. Raises QuotaExceeded, Unavailable."""
        name = current_principal().project
        if not name:
            return
        project = self._projects.get(name)
        if project is None:
            allowances = await self._client.report("", {}, [name])
            project = self._projects.setdefault(name, _Project(allowances.get(name, Allowance()), self._clock()))
        project.called = now = self._clock()
        self._check_tokens(name, project.allowance)
        if now - project.window_start >= MINUTE_S:
            project.window_start, project.window_requests = now, 0
        most = project.allowance.requests_per_minute
        if most and project.window_requests >= most:
            left_s = project.window_start + MINUTE_S - now
            raise QuotaExceeded(
                f"project {name!r} may make {most} requests a minute and has; try again in {math.ceil(left_s)} s, or "
                "ask a platform admin for more",
                retry_delay_s=left_s,
            )
        project.window_requests += 1

    def _check_tokens(self, name: str, allowance: Allowance) -> None:
        if not allowance.tokens_per_day:
            return  # else each request would look through all that was counted
        batches = [batch for batch in (self._counting, self._sent) if batch]
        used = allowance.tokens_today + sum(batch.tokens(name) for batch in batches)
        if used >= allowance.tokens_per_day:
            now = self._now()
            midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
            raise QuotaExceeded(
                f"project {name!r} may use {allowance.tokens_per_day} tokens a day and has used {used}; there are more "
                "from midnight UTC on, or ask a platform admin",
                retry_delay_s=(midnight - now).total_seconds(),
            )

    def count(
        self, model_version: str, *, requests: int = 0, prompt_tokens: int = 0, completion_tokens: int = 0
    ) -> None:
        """Add to what the current caller has used."""
        principal = current_principal()
        used = Used(principal.project, principal.name, model_version, _language.get())
        self._counting.used.setdefault(used, Counts()).add(Counts(requests, prompt_tokens, completion_tokens))

    async def run(self) -> None:
        """Tell the registry, again and again; what it could not be told is told the next time."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.flush()
            except Exception as error:
                log.warning("usage is not reported now, trying again: %s", error)

    async def stop(self, running: "asyncio.Task[None]") -> None:
        """End `run`, and tell what is left; what the registry cannot be told now is lost, and in the log."""
        running.cancel()
        try:
            await self.flush()  # what was sent and not answered
            await self.flush()  # what was counted since
        except Exception as error:
            left = [batch for batch in (self._sent, self._counting) if batch and batch.used]
            log.error("usage of %d keys is lost: %s", sum(len(batch.used) for batch in left), error)

    async def flush(self) -> None:
        """Tell what was counted, and learn what projects may still use. Raises what the client raises."""
        async with self._flushing:
            if self._sent is None:
                self._sent, self._counting = self._counting, _Batch()
            self._forget_idle()
            if not self._sent.used and not self._projects:
                self._sent = None
                return
            allowances = await self._client.report(self._sent.id, self._sent.used, list(self._projects))
            self._sent = None
            for name, allowance in allowances.items():
                if name in self._projects:
                    self._projects[name].allowance = allowance

    def _forget_idle(self) -> None:
        oldest = self._clock() - FORGET_AFTER_S
        self._projects = {name: project for name, project in self._projects.items() if project.called >= oldest}


def set_language(value: str | None) -> None:
    """Of what the call that is being handled is about, as the caller states it. Raises InvalidArgument."""
    if value and not _LANGUAGE.fullmatch(value):
        raise InvalidArgument(
            f"{LANGUAGE_HEADER}={value[:60]!r} is not allowed; send a language's code or name, at most 40 of A-Z, a-z, "
            "0-9, '+', '#', '.', '_', '-'"
        )
    _language.set(value or "")
