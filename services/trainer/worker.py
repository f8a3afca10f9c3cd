"""The Celery worker: `celery -A services.trainer.worker worker -Q train -c 1 --prefetch-multiplier=1`.

A message is a wake-up: the job's id and nothing else. Whether there is something to do the registry says, by granting
the lease or not, so lost, late and doubled messages change nothing, and the broker's visibility timeout plays no part.
"""

import logging
import mmap
import os
import signal
import socket
import threading
from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_process_init, worker_ready, worker_shutting_down

from services.common.logs import set_up_logging
from services.common.settings import Platform
from services.trainer.attempt import run_job as run_attempt
from services.trainer.processes import die_with_parent
from services.trainer.registry_client import RegistryClient

LOG = logging.getLogger(__name__)
PLATFORM = Platform.from_env()
DAY_S = 24 * 3600

app = Celery("services.trainer.worker", broker=PLATFORM.broker_url)
app.conf.update(
    task_default_queue="train",
    task_acks_late=True,  # else a worker that trains would hold the next job's message
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    worker_concurrency=1,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,  # a broker that is away is waited for, for ever
    worker_cancel_long_running_tasks_on_connection_loss=False,
    broker_transport_options={"visibility_timeout": 30 * DAY_S},
)

# One byte shared by the master and its child: 1 once the worker is told to stop.
_stop = mmap.mmap(-1, 1)
_master = os.getpid()


@setup_logging.connect  # type: ignore[untyped-decorator]
def _set_up_logging(**_: Any) -> None:
    set_up_logging("trainer")


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _start_child(**_: Any) -> None:
    die_with_parent(_master)


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _tell_child_to_stop(**_: Any) -> None:
    _stop[0] = 1


@worker_ready.connect  # type: ignore[untyped-decorator]
def _stop_in_time(**_: Any) -> None:
    """ANTHESIS_TIME_LIMIT: seconds after which this worker tells itself to stop, before a batch system kills it."""
    limit_s = float(os.environ.get("ANTHESIS_TIME_LIMIT") or 0)
    if limit_s:
        timer = threading.Timer(limit_s, os.kill, (_master, signal.SIGTERM))
        timer.daemon = True
        timer.start()


@app.task(name="services.trainer.worker.run_job")  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:
    registry = RegistryClient(PLATFORM, PLATFORM.read_key("trainer"))
    run_attempt(job_id, registry, PLATFORM, f"{socket.gethostname()}:{_master}", lambda: _stop[0] == 1)
