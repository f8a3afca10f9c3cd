"""Webhooks as their makers see them: made, listed, removed, and what became of their deliveries."""

from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.access import Permission
from services.common.auth import Principal
from services.common.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from services.registry import audit
from services.registry.database import Clock, Database, utc_now
from services.registry.names import new_id
from services.registry.pages import Page, PageRequest, read_page
from services.registry.tables import PENDING, Webhook, WebhookDelivery
from services.registry.webhooks.addresses import AddressPolicy
from services.registry.webhooks.outbox import EVENT_TYPES
from services.registry.webhooks.signing import secret_of

MAX_WEBHOOKS = 20  # of a principal


@dataclass(frozen=True, slots=True)
class Created:
    webhook: Webhook
    secret: str


class Webhooks:
    def __init__(self, database: Database, pepper: bytes, policy: AddressPolicy, clock: Clock = utc_now) -> None:
        self._database = database
        self._pepper = pepper
        self._policy = policy
        self._clock = clock

    async def create(self, by: Principal, url: str, event_types: list[str]) -> Created:
        """Raises InvalidArgument for a URL that webhooks do not go to, ResourceExhausted."""
        known = sorted(EVENT_TYPES.values())
        if unknown := sorted(set(event_types) - set(known)):
            raise InvalidArgument(f"event type {unknown[0][:40]!r} is not known; choose from {', '.join(known)}")
        await self._policy.check_resolves(self._policy.check_url(url))
        now = self._clock()
        webhook = Webhook(
            id=new_id("webhook", now),
            url=url,
            event_types=sorted(set(event_types)),
            created_by=by.name,
            create_time=now,
        )
        async with self._database.write() as session:
            count = await session.scalar(select(func.count()).select_from(Webhook).where(Webhook.created_by == by.name))
            if (count or 0) >= MAX_WEBHOOKS:
                raise ResourceExhausted(f"{by.name} has {count} webhooks, and {MAX_WEBHOOKS} is the most; delete one")
            session.add(webhook)
            audit.record(session, now, f"webhook/{webhook.id}", ", ".join(webhook.event_types) or "all events")
        return Created(webhook, secret_of(webhook.id, self._pepper))

    async def list_webhooks(self, by: Principal, page: PageRequest, *, everyone: bool = False) -> Page[Webhook]:
        """Newest first. Raises PermissionDenied where one who is no admin asks for everyone's."""
        query = select(Webhook)
        if not everyone:
            query = query.where(Webhook.created_by == by.name)
        elif Permission.ADMIN not in by.rights:
            raise PermissionDenied("everyone's webhooks are for admins; leave out `everyone` for your own")
        scope = "webhooks" if everyone else f"webhooks of {by.name}"
        async with self._database.read() as session:
            return await read_page(session, query, Webhook.id, page, scope=scope, newest_first=True)

    async def delete(self, by: Principal, webhook_id: str) -> None:
        """With its deliveries. Raises NotFound."""
        async with self._database.write() as session:
            webhook = await self._find(session, by, webhook_id, lock=True)
            await session.execute(delete(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook.id))
            await session.delete(webhook)
            audit.record(session, self._clock(), f"webhook/{webhook.id}", "deleted")

    async def list_deliveries(self, by: Principal, webhook_id: str, page: PageRequest) -> Page[WebhookDelivery]:
        """Newest first. Raises NotFound."""
        async with self._database.read() as session:
            webhook = await self._find(session, by, webhook_id)
            query = select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook.id)
            scope = f"deliveries {webhook.id}"
            return await read_page(session, query, WebhookDelivery.id, page, scope=scope, newest_first=True)

    async def redeliver(self, by: Principal, delivery_id: str) -> WebhookDelivery:
        """Have it sent once more, under the same id. Raises NotFound, FailedPrecondition while it is being tried."""
        now = self._clock()
        async with self._database.write() as session:
            delivery = await session.get(WebhookDelivery, delivery_id, with_for_update=True)
            if delivery is None:
                raise NotFound(f"no delivery {delivery_id[:200]!r}; `anthesis webhooks deliveries` shows the ids")
            await self._find(session, by, delivery.webhook_id)
            if delivery.state == PENDING:
                raise FailedPrecondition(
                    f"delivery {delivery.id} is still being tried: attempt {delivery.attempts + 1} is not before "
                    f"{delivery.next_time:%Y-%m-%d %H:%M:%S} UTC; wait for it"
                )
            delivery.state, delivery.attempts, delivery.next_time = PENDING, 0, now
            audit.record(session, now, f"webhook/{delivery.webhook_id}", f"sends {delivery.id} again")
        return delivery

    async def _find(self, session: AsyncSession, by: Principal, webhook_id: str, *, lock: bool = False) -> Webhook:
        """Another principal's is there for admins alone."""
        webhook = await session.get(Webhook, webhook_id, with_for_update=lock)
        if webhook is None or (webhook.created_by != by.name and Permission.ADMIN not in by.rights):
            raise NotFound(f"no webhook {webhook_id[:200]!r}; `anthesis webhooks list` shows yours")
        return webhook
