"""Streams of a job's events over a registry that is killed: nothing is missing and nothing comes twice."""

import asyncio
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from anthesis import AsyncClient, Client, Settings
from anthesis.channel import open_channel
from anthesis.v1 import job_pb2
from anthesis.v1.job_pb2_grpc import JobServiceStub

from services.common.settings import ROOT
from tests.integration.sdk.test_registry import submit
from tests.support.registry_server import RegistryProcess, read_keys

KILLS = 3
AFTER = 3  # the command begins behind this event


class Worker(threading.Thread):
    """A trainer that has the job and reports on and on, also to a registry that is away, until it is told to stop."""

    def __init__(self, registry: RegistryProcess, job_id: str) -> None:
        super().__init__()
        self._address, self._job_id = registry.platform.registry_address, job_id
        self._key = read_keys(registry.platform)["trainer"]
        self.refused = 0  # calls that found the registry away
        self.stopping = threading.Event()

    def run(self) -> None:
        with open_channel(self._address, self._key) as channel:
            stub = JobServiceStub(channel)
            self._ask(stub.AcquireLease, job_pb2.AcquireLeaseRequest(job_id=self._job_id, worker_id="w"))
            number = 0
            while not self.stopping.is_set():
                number += 1
                text = f"line {number}\n"
                renewal = job_pb2.RenewLeaseRequest(
                    job_id=self._job_id, fencing_token=1, messages=[f"message {number}"]
                )
                renewal.log_text, renewal.log_offset = text, self._printed(number)
                self._ask(stub.RenewLease, renewal)
                time.sleep(0.02)  # the pace of a job, nothing that is waited for
            self.printed = [f"line {i}" for i in range(1, number + 1)]
            release = job_pb2.ReleaseLeaseRequest(job_id=self._job_id, fencing_token=1)
            self._ask(stub.ReleaseLease, release)

    @staticmethod
    def _printed(number: int) -> int:
        return sum(len(f"line {i}\n") for i in range(1, number))

    def _ask(self, method: object, request: object) -> None:
        while True:
            try:
                method(request, timeout=5)  # type: ignore[operator]
                return
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.ABORTED:
                    return  # given back before, by a call whose answer was lost
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise
                self.refused += 1
                time.sleep(0.1)


@pytest.fixture
def worker(client: Client, registry: RegistryProcess, tmp_path: Path) -> Iterator[tuple[str, Worker]]:
    job_id = submit(client, tmp_path, "watched-by-many").id
    worker = Worker(registry, job_id)
    worker.start()
    yield job_id, worker
    worker.stopping.set()
    worker.join(30)


def test_watches_and_logs_go_on_over_kills_of_the_registry_without_gap_or_repeat(
    worker: tuple[str, Worker],
    client: Client,
    settings: Settings,
    registry: RegistryProcess,
    environment: dict[str, str],
) -> None:
    job_id, trainer = worker
    seen: dict[str, list[int]] = {"sync": [], "async": []}
    lines: list[str] = []

    def watch_sync() -> None:
        seen["sync"] += [event.sequence for event in note(client.jobs.watch(job_id))]

    def note(events: Iterator[job_pb2.JobEvent]) -> Iterator[job_pb2.JobEvent]:
        for event in events:
            newest[0] = event.sequence
            yield event

    async def watch_async() -> None:
        async with AsyncClient(settings) as theirs:
            seen["async"] += [event.sequence async for event in theirs.jobs.watch(job_id)]

    def follow_log() -> None:
        lines.extend(client.jobs.logs(job_id, follow=True))

    newest = [0]
    threads = [threading.Thread(target=work) for work in (watch_sync, follow_log, lambda: asyncio.run(watch_async()))]
    for thread in threads:
        thread.start()
    command = [sys.executable, "-m", "anthesis.cli", "jobs", "watch", job_id, "--json", "--after", str(AFTER)]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) as shown:
        moments = random.Random(6)
        for _ in range(KILLS):
            wait_for_more(newest, moments.randint(5, 40))
            registry.kill()
            registry.restart()
        wait_for_more(newest, 5)
        client.jobs.get(job_id)  # is retried until the channel has connected again, which cancelling is not
        client.jobs.cancel(job_id)
        trainer.stopping.set()
        for thread in [trainer, *threads]:
            thread.join(60)
            assert not thread.is_alive()
        printed, _ = shown.communicate(timeout=60)
    assert trainer.refused >= KILLS, "the registry was killed between calls alone"
    total = len(seen["sync"])
    assert total > AFTER + KILLS * 5
    assert seen["sync"] == seen["async"] == list(range(1, total + 1))
    assert [json.loads(line)["sequence"] for line in printed.splitlines()] == list(range(AFTER + 1, total + 1))
    assert lines == trainer.printed
    assert list(client.jobs.logs(job_id, tail=7)) == trainer.printed[-7:]


def wait_for_more(newest: list[int], events: int) -> None:
    """Until so many more events have been seen."""
    aim, deadline = newest[0] + events, time.monotonic() + 60
    while newest[0] < aim:
        assert time.monotonic() < deadline, f"no event after {newest[0]}"
        time.sleep(0.01)
