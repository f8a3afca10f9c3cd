"""API keys. Kept as HMAC-SHA256 under a pepper that lies outside the database; the key itself is shown once.

A key has a role, and may have less: scopes, an expiry, a project, of which its principal's name begins with the name.
Nobody makes a key of more rights than their own.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import or_, select, update

from services.common.access import PLATFORM_ONLY, ROLES, Permission, rights
from services.common.auth import Principal, check_not_expired
from services.common.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from services.registry import audit
from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.names import check_name, new_id
from services.registry.pages import Page, PageRequest, read_page
from services.registry.projects.service import find_open
from services.registry.projects.tables import Project
from services.registry.tables import ApiKey

CACHE_S = 2.0  # another process's revocation counts after this
MAX_CACHED = 10_000
MAX_LABEL = 200
USE_NOTED_EVERY = timedelta(minutes=1)


def new_secret() -> str:
    return "an_" + secrets.token_urlsafe(32)


class Keys:
    def __init__(self, database: Database, pepper: bytes, clock: Clock = utc_now) -> None:
        self._database = database
        self._pepper = pepper
        self._clock = clock
        self._cache: dict[str, tuple[float, Principal]] = {}

    def _digest(self, secret: str) -> str:
        return hmac.new(self._pepper, secret.encode(), hashlib.sha256).hexdigest()

    async def create(
        self,
        principal: str,
        role: str,
        *,
        label: str = "",
        scopes: Collection[str] = (),
        expire_time: datetime | None = None,
        project: str = "",
        by: Principal | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key and its secret, made with the rights of `by` (None: the platform itself) and in its project.

        Raises InvalidArgument, NotFound for a project that there is not; PermissionDenied when the key could do more
        than `by`, or for longer, or elsewhere.
        """
        project = check_project(by, project)
        check_role(role, scopes, project)
        if len(label) > MAX_LABEL or not label.isprintable():
            raise InvalidArgument(f"label {label[:40]!r} is not allowed; use at most {MAX_LABEL} printable characters")
        if expire_time and expire_time <= self._clock():
            raise InvalidArgument(f"expire_time {expire_time.isoformat()} is over; choose one in the future")
        if by:
            check_no_more_than(by, rights(role, scopes, project), expire_time)
        secret = new_secret()
        key = await self.register(
            principal,
            role,
            secret,
            label=label,
            scopes=sorted(set(scopes)),
            expire_time=expire_time,
            project=project,
        )
        return key, secret

    async def register(
        self,
        principal: str,
        role: str,
        secret: str,
        *,
        label: str = "",
        scopes: Collection[str] = (),
        expire_time: datetime | None = None,
        project: str = "",
    ) -> ApiKey:
        """Make `secret` a key of `principal`; where it is one already, return that.

        Raises NotFound, FailedPrecondition for a project that is not there or archived.
        """
        check_name("principal", principal)
        digest, now = self._digest(secret), self._clock()
        async with self._database.write() as session:
            if project:
                await find_open(session, project)
            inserted = await insert_if_absent(
                session,
                ApiKey,
                id=new_id("key", now),
                principal=f"{project}/{principal}" if project else principal,
                role=role,
                digest=digest,
                create_time=now,
                label=label,
                scopes=list(scopes),
                expire_time=expire_time,
                project=project,
            )
            key = (await session.scalars(select(ApiKey).where(ApiKey.digest == digest))).one()
            if inserted:
                audit.record(session, now, f"key/{key.id}", describe(key))
            return key

    async def list_keys(self, page: PageRequest) -> Page[ApiKey]:
        """Newest first, with the revoked ones."""
        async with self._database.read() as session:
            return await read_page(session, select(ApiKey), ApiKey.id, page, scope="keys", newest_first=True)

    async def revoke(self, key_id: str) -> ApiKey:
        """Raises NotFound, FailedPrecondition when it was revoked before."""
        async with self._database.write() as session:
            key = await session.get(ApiKey, key_id, with_for_update=True)
            if key is None:
                raise NotFound(f"no API key {key_id[:200]!r}; `anthesis keys list` shows the ids")
            if key.revoke_time:
                raise FailedPrecondition(f"API key {key_id} was revoked at {key.revoke_time.isoformat()} already")
            key.revoke_time = self._clock()
            audit.record(session, key.revoke_time, f"key/{key.id}", "revoked")
        self._cache.clear()
        return key

    async def authenticate(self, secret: str) -> Principal:
        """Whose key is `secret`? Raises Unauthenticated, without repeating it. Notes that the key was used."""
        digest = self._digest(secret)
        seen = self._cache.get(digest)
        if seen and time.monotonic() - seen[0] < CACHE_S:
            check_not_expired(seen[1], self._clock())
            return seen[1]
        key, principal = await self._find(digest)
        if len(self._cache) >= MAX_CACHED:
            self._cache.clear()
        self._cache[digest] = (time.monotonic(), principal)
        now = self._clock()
        if key.last_used_time is None or key.last_used_time <= now - USE_NOTED_EVERY:
            self._database.in_background(self._note_use(key.id, now))  # the caller does not wait for the disk
        return principal

    async def verify(self, secret: str) -> Principal:
        """`authenticate`, which is no use of the key."""
        return (await self._find(self._digest(secret)))[1]

    async def _find(self, digest: str) -> tuple[ApiKey, Principal]:
        query = select(ApiKey, Project).outerjoin(Project, Project.name == ApiKey.project)
        async with self._database.read() as session:
            found = (await session.execute(query.where(ApiKey.digest == digest))).first()
        if found is None:
            raise Unauthenticated("the API key is not known; ask an admin for a new one")
        key, project = found
        if key.revoke_time:
            raise Unauthenticated("the API key was revoked; ask an admin for a new one")
        if project and project.archive_time:
            raise Unauthenticated(
                f"the API key is of project {project.name!r}, which is archived; ask a platform admin"
            )
        principal = Principal(key.id, key.principal, key.role, frozenset(key.scopes), key.expire_time, key.project)
        check_not_expired(principal, self._clock())
        return key, principal

    async def _note_use(self, key_id: str, now: datetime) -> None:
        """Several registries may see the same use: only one of them writes."""
        stale = or_(ApiKey.last_used_time.is_(None), ApiKey.last_used_time <= now - USE_NOTED_EVERY)
        async with self._database.write() as session:
            await session.execute(update(ApiKey).where(ApiKey.id == key_id, stale).values(last_used_time=now))


def check_project(by: Principal | None, project: str) -> str:
    """The project of a key that `by` makes for `project`. Raises PermissionDenied for another than its own."""
    own = by.project if by else ""
    if own and project not in ("", own):
        raise PermissionDenied(f"your key makes keys of project {own!r} alone, not of {project[:200]!r}")
    return own or project


def check_role(role: str, scopes: Collection[str], project: str = "") -> None:
    """Raise InvalidArgument unless the role is known, one of a project's where there is one, and has every scope."""
    known = [name for name in ROLES if not project or name != "service"]
    if role not in known:
        raise InvalidArgument(f"role {role!r} is not known{' in a project' * bool(project)}; choose {', '.join(known)}")
    allowed = ROLES[role] - PLATFORM_ONLY if project else ROLES[role]
    if beyond := sorted(set(scopes) - allowed):
        has = ", ".join(permission for permission in Permission if permission in allowed)
        raise InvalidArgument(f"scope {beyond[0]!r} is none of role {role!r}; choose from {has}")


def check_no_more_than(by: Principal, wanted: frozenset[Permission], expire_time: datetime | None) -> None:
    """Raise PermissionDenied when a key of the rights `wanted` would do more than `by`, or outlive it."""
    if beyond := sorted(wanted - by.rights):
        raise PermissionDenied(
            f"the new key could {', '.join(beyond)}, which yours cannot: yours can "
            f"{', '.join(sorted(by.rights))}; ask for a role or scopes within these"
        )
    if by.expire_time and (expire_time is None or expire_time > by.expire_time):
        raise PermissionDenied(
            f"the new key would outlive yours, which expires at {by.expire_time.isoformat(timespec='seconds')}; "
            "let it expire by then"
        )


def describe(key: ApiKey) -> str:
    """What the audit log says of a new key."""
    parts = [f"{key.principal}: {key.role}"]
    if key.scopes:
        parts.append(f"scopes {', '.join(key.scopes)}")
    if key.expire_time:
        parts.append(f"until {key.expire_time.isoformat(timespec='seconds')}")
    return "; ".join(parts)
