"""The audit log: who did what, when, on which resource, how it ended. Rows are only added; triggers refuse the rest.

Whoever changes something calls `record` in the transaction of the change. Calls refused for want of rights come by
`Audit.denied`. Reads, and what was refused for other reasons and so changed nothing, leave no entry.
"""

import hashlib
import time
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.auth import Call, Principal, current_call
from services.common.errors import NotFound
from services.common.logs import redact
from services.registry.database import Clock, Database, utc_now
from services.registry.pages import Page, PageRequest, read_page
from services.registry.tables import ApiKey, AuditEntry

OK, PERMISSION_DENIED = "OK", "PERMISSION_DENIED"
MAX_TEXT = 250  # characters of a resource or a value
REPEAT_S = 60.0  # the same refusal is written once in this time, so that nobody fills the disk with them
MAX_REMEMBERED = 10_000
# What an RPC's name says its request is about; CreateModelVersion is of a version, so that comes first.
_KINDS = {
    "Version": "version",
    "Model": "model",
    "Alias": "alias",
    "Artifact": "artifact",
    "Dataset": "dataset",
    "File": "file",
    "Deployment": "deployment",
    "ApiKey": "key",
    "Webhook": "webhook",
    "Job": "job",
    "Suite": "suite",
    "Evaluation": "version",
    "Gate": "gate",
    "Project": "project",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditQuery:
    """Empty or None: any."""

    principal: str = ""
    action: str = ""
    resource: str = ""
    start: datetime | None = None  # at or after
    end: datetime | None = None  # before

    def select(self) -> Select[AuditEntry]:
        query = select(AuditEntry)
        for column in ("principal", "action", "resource"):
            if value := getattr(self, column):
                query = query.where(getattr(AuditEntry, column) == value)
        if self.start:
            query = query.where(AuditEntry.time >= self.start)
        if self.end:
            query = query.where(AuditEntry.time < self.end)
        return query

    @property
    def scope(self) -> str:
        """Tells the page tokens of this query from those of another."""
        return "audit " + hashlib.sha256(repr(self).encode(errors="replace")).hexdigest()[:16]


def record(session: AsyncSession, now: datetime, resource: str, value: str = "", outcome: str = OK) -> None:
    """Add to `session` that the current call did this to `resource` ("alias/production")."""
    _add(session, now, current_call(), resource, value, outcome)


def _add(session: AsyncSession, now: datetime, call: Call, resource: str, value: str, outcome: str) -> None:
    session.add(
        AuditEntry(
            time=now,
            project=call.principal.project,
            principal=call.principal.name,
            key_id=call.principal.key_id,
            action=_short(call.action),
            resource=_short(resource),
            outcome=outcome,
            value=_short(value),
        )
    )


def _short(text: str) -> str:
    """At most MAX_TEXT printable characters, without keys: what callers name need not be what they meant to name."""
    text = redact(text[: 4 * MAX_TEXT])[:MAX_TEXT]
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


class Audit:
    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock
        self._denied: dict[tuple[str, str, str], float] = {}

    async def append(self, resource: str, value: str = "") -> None:
        """`record` in a transaction of its own, for what changes no row: an artifact that was stored."""
        async with self._database.write() as session:
            record(session, self._clock(), resource, value)

    async def denied(self, call: Call, resource: str) -> None:
        """Note that `call` was refused for want of rights; the same again within a minute is not written twice."""
        resource = _short(resource)
        seen = (call.principal.key_id, _short(call.action), resource)
        if time.monotonic() - self._denied.get(seen, -REPEAT_S) < REPEAT_S:
            return
        if len(self._denied) >= MAX_REMEMBERED:
            self._denied.clear()
        self._denied[seen] = time.monotonic()
        rpc = call.action.rpartition(".")[2]
        kind = next((kind for noun, kind in _KINDS.items() if noun in rpc), "")
        named = f"{kind}/{resource}" if kind and resource else resource
        async with self._database.write() as session:
            _add(session, self._clock(), call, named, "", PERMISSION_DENIED)

    async def report(self, key_id: str, action: str, resource: str) -> None:
        """`denied`, as another service tells it. Raises NotFound for a key that never was."""
        async with self._database.read() as session:
            key = await session.get(ApiKey, key_id)
        if key is None:
            raise NotFound(f"no API key {key_id[:200]!r}; report the id that Authenticate answered")
        await self.denied(Call(Principal(key.id, key.principal, key.role, project=key.project), action), resource)

    async def list_entries(self, query: AuditQuery, page: PageRequest) -> Page[AuditEntry]:
        """Newest first."""
        async with self._database.read() as session:
            found = query.select()
            return await read_page(session, found, AuditEntry.id, page, scope=query.scope, newest_first=True)
