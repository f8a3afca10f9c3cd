"""API keys. Kept as HMAC-SHA256 under a pepper that lies outside the database; the key itself is shown once."""

import hashlib
import hmac
import secrets
import time

from sqlalchemy import select

from services.common.auth import Principal
from services.common.errors import FailedPrecondition, InvalidArgument, NotFound, Unauthenticated
from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.names import check_name, new_id
from services.registry.pages import Page, PageRequest, read_page
from services.registry.tables import ApiKey

ROLES = ("user", "admin", "service")
CACHE_S = 2.0  # another process's revocation counts after this
MAX_CACHED = 10_000


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

    async def create(self, principal: str, role: str) -> tuple[ApiKey, str]:
        """A new key and its secret. Raises InvalidArgument."""
        if role not in ROLES:
            raise InvalidArgument(f"role {role!r} is not known; choose {', '.join(ROLES)}")
        secret = new_secret()
        return await self.register(principal, role, secret), secret

    async def register(self, principal: str, role: str, secret: str) -> ApiKey:
        """Make `secret` a key of `principal`; where it is one already, return that."""
        check_name("principal", principal)
        digest, now = self._digest(secret), self._clock()
        async with self._database.write() as session:
            await insert_if_absent(
                session,
                ApiKey,
                id=new_id("key", now),
                principal=principal,
                role=role,
                digest=digest,
                create_time=now,
            )
            return (await session.scalars(select(ApiKey).where(ApiKey.digest == digest))).one()

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
        self._cache.clear()
        return key

    async def authenticate(self, secret: str) -> Principal:
        """Whose key is `secret`? Raises Unauthenticated, without repeating it."""
        digest = self._digest(secret)
        seen = self._cache.get(digest)
        if seen and time.monotonic() - seen[0] < CACHE_S:
            return seen[1]
        async with self._database.read() as session:
            key = await session.scalar(select(ApiKey).where(ApiKey.digest == digest))
        if key is None or key.revoke_time:
            why = "is not known" if key is None else "was revoked"
            raise Unauthenticated(f"the API key {why}; ask an admin for a new one")
        if len(self._cache) >= MAX_CACHED:
            self._cache.clear()
        principal = Principal(key.id, key.principal, key.role)
        self._cache[digest] = (time.monotonic(), principal)
        return principal
