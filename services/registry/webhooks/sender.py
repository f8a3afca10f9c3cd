"""Sends the deliveries that are due, in the relay's process: at least once each, however often it is killed.

An attempt is written down before it is made, with the time at which it counts as lost: a sender that dies in between
leaves the delivery to be sent again, perhaps twice, under the same id. Of one webhook one delivery is under way at a
time, the oldest that is due; a receiver that does not answer holds up no other.
"""

import asyncio
import logging
import random
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select

from services.common.errors import InvalidArgument
from services.registry.database import Clock, Database, utc_now
from services.registry.tables import FAILED, PENDING, Webhook, WebhookDelivery
from services.registry.webhooks.config import SenderConfig
from services.registry.webhooks.outbox import write_deliveries
from services.registry.webhooks.post import GONE, Answer, post
from services.registry.webhooks.signing import signed_headers

DELIVERED = "DELIVERED"
LOST_AFTER_S = 5.0  # an attempt's timeout, and so long on top
FORGET_EVERY = timedelta(hours=1)
log = logging.getLogger(__name__)


class Sender:
    def __init__(self, database: Database, config: SenderConfig, clock: Clock = utc_now) -> None:
        self._database = database
        self._config = config
        self._clock = clock
        self._under_way: dict[str, asyncio.Task[None]] = {}  # by webhook
        self._forgot: datetime | None = None

    async def run(self, stopping: asyncio.Event) -> None:
        """Send until `stopping` is set. A busy or dead database is tried again."""
        stopped = asyncio.create_task(stopping.wait())
        while not stopping.is_set():
            wait_s = self._config.poll_s
            try:
                await self.step()
            except Exception as error:
                log.warning("cannot send webhooks now, trying again: %s: %s", type(error).__name__, error)
                wait_s *= 5
            await asyncio.wait(
                {stopped, *self._under_way.values()}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
            )
        await self.settle()

    async def settle(self) -> None:
        """Wait for the attempts that are under way."""
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def step(self) -> None:
        """Write what is to be delivered, and start the attempts that are due."""
        self._under_way = {webhook: task for webhook, task in self._under_way.items() if not task.done()}
        now = self._clock()
        await write_deliveries(self._database, now)
        await self._forget(now)
        for webhook_id, delivery_id in await self._due(now):
            self._under_way[webhook_id] = asyncio.create_task(self._attempt(delivery_id))

    async def _due(self, now: datetime) -> list[tuple[str, str]]:
        """(webhook, its oldest delivery that is due) of webhooks that nothing is being sent to."""
        room = self._config.max_under_way - len(self._under_way)
        query = (
            select(WebhookDelivery.webhook_id, func.min(WebhookDelivery.id))
            .where(WebhookDelivery.state == PENDING, WebhookDelivery.next_time <= now)
            .where(WebhookDelivery.webhook_id.not_in(list(self._under_way)))
            .group_by(WebhookDelivery.webhook_id)
            .limit(max(0, room))
        )
        async with self._database.read() as session:
            return [(webhook_id, delivery_id) for webhook_id, delivery_id in await session.execute(query)]

    async def _attempt(self, delivery_id: str) -> None:
        try:
            taken = await self._take(delivery_id)
            if taken is not None:
                await self._finish(delivery_id, await self._send(*taken))
        except Exception as error:  # the database is busy or away: the attempt counts as lost
            log.warning("delivery %s: %s: %s", delivery_id, type(error).__name__, error)

    async def _take(self, delivery_id: str) -> tuple[Webhook, WebhookDelivery] | None:
        """The delivery, its attempt written down; None where another sender was faster."""
        now = self._clock()
        async with self._database.write() as session:
            delivery = await session.get(WebhookDelivery, delivery_id, with_for_update=True)
            if delivery is None or delivery.state != PENDING or delivery.next_time is None or delivery.next_time > now:
                return None
            delivery.attempts += 1
            delivery.last_time = now
            delivery.next_time = now + timedelta(seconds=self._config.timeout_s + LOST_AFTER_S)
            return await session.get_one(Webhook, delivery.webhook_id), delivery

    async def _send(self, webhook: Webhook, delivery: WebhookDelivery) -> Answer:
        config, body = self._config, delivery.body.encode()
        headers = signed_headers(webhook.id, delivery.id, body, self._clock(), config.pepper)
        try:
            url = config.policy.check_url(webhook.url)  # the admin's setting may have changed
        except InvalidArgument as error:
            return Answer(None, str(error))
        return await post(url, body, headers, config.policy, config.timeout_s)

    async def _finish(self, delivery_id: str, answer: Answer) -> None:
        now = self._clock()
        async with self._database.write() as session:
            delivery = await session.get(WebhookDelivery, delivery_id, with_for_update=True)
            if delivery is None:
                return
            delivery.status_code, delivery.error, delivery.next_time = answer.status_code, answer.error, None
            if answer.accepted:
                delivery.state = DELIVERED
            elif answer.status_code == GONE or delivery.attempts >= self._config.max_attempts:
                delivery.state = FAILED
            else:
                delivery.next_time = now + timedelta(seconds=self._pause_s(delivery.attempts))
        log.info("delivery %s: attempt %d: %s", delivery.id, delivery.attempts, answer.status_code or answer.error)

    def _pause_s(self, attempts: int) -> float:
        """Exponential, with jitter, so that receivers that were away are not met by all at once."""
        pause_s = min(self._config.max_retry_s, self._config.retry_s * 4.0 ** (attempts - 1))
        return pause_s * random.uniform(0.5, 1.0)

    async def _forget(self, now: datetime) -> None:
        """Remove old deliveries that are at their end."""
        if self._forgot and now - self._forgot < FORGET_EVERY:
            return
        self._forgot = now
        old = WebhookDelivery.create_time < now - timedelta(days=self._config.keep_days)
        async with self._database.write() as session:
            await session.execute(delete(WebhookDelivery).where(old, WebhookDelivery.state != PENDING))
