"""The outboxes' way out, to the broker and to webhooks, and the reconciler: `python -m services.registry.relay`.

A wake-up is deleted after the broker took it: killed at any moment, the relay sends one twice rather than never. Twice
changes nothing (the second worker finds the lease taken), and a wake-up that the broker loses is written again while
its job is PENDING. So the messages may expire, which keeps the queue short behind a long job.
"""

import asyncio
import contextlib
import logging

import celery
from sqlalchemy import delete, select

from services.common.logs import set_up_logging
from services.common.server import wait_for_signal
from services.registry.config import RelayConfig
from services.registry.database import Database
from services.registry.leases import reconcile
from services.registry.tables import Wakeup
from services.registry.webhooks.config import SenderConfig
from services.registry.webhooks.sender import Sender

TASK = "services.trainer.worker.run_job"
QUEUE = "train"
SOCKET_TIMEOUT_S = 5.0
MESSAGE_LIFE_IN_WAKES = 6  # a message older than this many `wake_again_s` was replaced by newer ones
BATCH = 100
log = logging.getLogger(__name__)


class Broker:
    """Sends wake-ups. Blocking, but never longer than the socket's timeout."""

    def __init__(self, url: str, message_life_s: float) -> None:
        self._message_life_s = message_life_s
        self._app = celery.Celery("anthesis", broker=url)
        self._app.conf.update(
            broker_connection_retry=False,
            broker_connection_timeout=SOCKET_TIMEOUT_S,
            broker_transport_options={
                "socket_timeout": SOCKET_TIMEOUT_S,
                "socket_connect_timeout": SOCKET_TIMEOUT_S,
                "max_retries": 0,
            },
            task_ignore_result=True,
        )

    def send(self, job_id: str) -> None:
        """Raises what the broker's client raises when it did not take the message."""
        self._app.send_task(
            TASK, args=[job_id], queue=QUEUE, expires=self._message_life_s, retry=False, ignore_result=True
        )

    def close(self) -> None:
        self._app.close()


class Relay:
    def __init__(self, database: Database, broker: Broker, config: RelayConfig) -> None:
        self._database = database
        self._broker = broker
        self._config = config

    async def run(self, stopping: asyncio.Event) -> None:
        """Send and reconcile until `stopping` is set. A dead broker or a busy database is tried again."""
        while not stopping.is_set():
            try:
                await self.step()
            except Exception as error:
                log.warning("cannot work now, trying again: %s: %s", type(error).__name__, error)
                await _wait(stopping, 5 * self._config.poll_s)
            await _wait(stopping, self._config.poll_s)

    async def step(self) -> None:
        """Reconcile once, then send what is in the outbox. Reconciling does not need the broker."""
        changed = await reconcile(
            self._database,
            wake_again_s=self._config.wake_again_s,
            max_lost_leases=self._config.max_lost_leases,
        )
        if changed:
            log.info("reconciled %s", ", ".join(changed))
        await self.send_outbox()

    async def send_outbox(self) -> None:
        """Oldest first, one by one, each deleted once it was sent."""
        async with self._database.read() as session:
            rows = list(await session.scalars(select(Wakeup).order_by(Wakeup.id).limit(BATCH)))
        for row in rows:
            await asyncio.to_thread(self._broker.send, row.job_id)
            async with self._database.write() as session:
                await session.execute(delete(Wakeup).where(Wakeup.id == row.id))
            log.info("woke %s", row.job_id)


async def _wait(stopping: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)


async def serve(config: RelayConfig, webhooks: SenderConfig) -> None:
    """Run until SIGTERM or SIGINT. Raises RuntimeError when the database needs a migration."""
    database = Database(config.database_url)
    await database.check_revision()
    broker = Broker(config.broker_url, MESSAGE_LIFE_IN_WAKES * config.wake_again_s)
    stopping = asyncio.Event()
    running = [Relay(database, broker, config).run(stopping), Sender(database, webhooks).run(stopping)]
    both = asyncio.gather(*running)
    log.info("relay runs")
    await wait_for_signal()
    stopping.set()
    await both
    broker.close()
    await database.close()


def main() -> None:
    set_up_logging("relay")
    asyncio.run(serve(RelayConfig.from_env(), SenderConfig.from_env()))


if __name__ == "__main__":
    main()
