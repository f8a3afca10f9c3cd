"""kill -9 of each process of the control plane, at random logged moments, while jobs are submitted, watched and run.

Every accepted job is done once, whatever died; nothing is left over. `make test` kills each of them twice, `make
test-long` twenty times. ANTHESIS_KILL_SEED repeats the moments, which are logged.
"""

import json
import logging
import os
import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psycopg
import pytest
from anthesis import Client, Settings
from anthesis.errors import DeadlineExceededError, UnavailableError
from anthesis.v1 import job_pb2, registry_pb2

from tests.support.postgres import MISSING, PostgresServer, find_binaries
from tests.support.training import MODEL, text_rows
from tests.support.training_platform import TrainingPlatform, processes_of, wait_for

VICTIMS = ("registry", "gateway", "relay", "valkey", "postgres", "worker")
STEPS = 3
SETTLE_S = 240
pytestmark = pytest.mark.skipif(find_binaries() is None, reason=MISSING)
LOG = logging.getLogger(__name__)


@contextmanager
def running(seed: int) -> Iterator[TrainingPlatform]:
    binaries = find_binaries()
    assert binaries
    folder = Path(tempfile.mkdtemp(prefix="an-"))
    counts = {"ANTHESIS_TEST_COUNTS": str(folder / "counts")}
    with TrainingPlatform(
        folder, mistake="counted", postgres=PostgresServer(binaries), also=["gateway"], **counts
    ) as platform:
        platform.dataset("texts", text_rows(40, seed))
        yield platform
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(kw_only=True)
class Load:
    """Submits jobs and watches each to its end, and asks the gateway, until told to stop."""

    platform: TrainingPlatform
    client: Client
    waiting: int  # jobs that are accepted and have not ended, at most
    stopped: threading.Event = field(default_factory=threading.Event)
    accepted: dict[str, "Future[list[job_pb2.JobEvent]]"] = field(default_factory=dict)  # job -> its events

    def submit_and_watch(self, pool: ThreadPoolExecutor) -> None:
        number = 0
        while not self.stopped.is_set():
            if sum(not watch.done() for watch in self.accepted.values()) >= self.waiting:
                self.stopped.wait(0.2)
                continue
            number += 1
            job = self._submit(number)
            assert job.id not in self.accepted
            self.accepted[job.id] = pool.submit(lambda job_id: list(self.client.jobs.watch(job_id)), job.id)

    def _submit(self, number: int) -> job_pb2.Job:
        """As an application does that must not submit twice: the same key until it hears that the job is accepted."""
        options = job_pb2.TrainOptions(
            steps=STEPS, sequence_length=32, micro_batch=2, precision="fp32", checkpoint_every_steps=1, seed=number
        )
        spec = job_pb2.PretrainSpec(
            output_model="survivor",
            tokenizer_digest=self.platform.tokenizer_digest,
            datasets=["texts"],
            config=json.dumps(MODEL),
            options=options,
        )
        while True:
            try:
                return self.client.jobs.create(spec, idempotency_key=f"job-{number}")
            except (UnavailableError, DeadlineExceededError) as error:
                LOG.warning("job %d: %s", number, error)

    def ask_gateway(self) -> Counter[str]:
        """What came of listing the models over and over."""
        address = f"http://{self.platform.settings.gateway_http_address}"
        headers = {"authorization": f"Bearer {self.client.settings.api_key}"}
        answers: Counter[str] = Counter()
        with httpx.Client(base_url=address, headers=headers, timeout=10) as http:
            while not self.stopped.wait(0.1):
                try:
                    answers[str(http.get("/v1/models").status_code)] += 1
                except httpx.TransportError as error:
                    answers[type(error).__name__] += 1
        return answers


def strike(platform: TrainingPlatform, kills: int, rng: random.Random) -> None:
    """Kill every victim `kills` times, in random order, each back after a moment; wait for a sign of life between."""
    victims = list(VICTIMS) * kills
    rng.shuffle(victims)
    for victim in victims:
        time.sleep(rng.uniform(0.2, 2.5))
        LOG.warning("%s is killed", victim)
        platform.kill(victim)
        time.sleep(rng.uniform(0, 0.5))
        platform.start(victim)


def settings_of(platform: TrainingPlatform) -> Settings:
    made = platform.settings
    return Settings(api_key=made.read_key("admin", {}), registry_address=made.registry_address)


def assert_done_once(platform: TrainingPlatform, client: Client, job_ids: list[str]) -> None:
    versions = client.models.list_versions("survivor")
    assert sorted(version.job_id for version in versions) == sorted(job_ids)
    lines = [
        line.split(maxsplit=2) for line in Path(platform.environment["ANTHESIS_TEST_COUNTS"]).read_text().splitlines()
    ]
    assert {what for _, _, what in lines} == {"done"}, "a job was trained by two at once"
    done = Counter(job_id for job_id, _, _ in lines)
    assert done.keys() == set(job_ids)
    again = sum(times - 1 for times in done.values())
    LOG.warning("%d jobs trained to the end %d times", len(done), done.total())
    # One that was trained to its end and killed before the registry heard of it exports again from its last checkpoint.
    with_token = Counter((job_id, token) for job_id, token, _ in lines)
    assert set(with_token.values()) == {1}
    assert again <= sum(client.jobs.get(job_id).attempts - 1 for job_id in job_ids)


def assert_events_have_no_gap(events: list[job_pb2.JobEvent]) -> None:
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert [event.state for event in events if event.WhichOneof("event") == "state"][-1] == job_pb2.JOB_STATE_SUCCEEDED
    assert [event.state for event in events].count(job_pb2.JOB_STATE_SUCCEEDED) == 1


def assert_nothing_is_left(platform: TrainingPlatform, client: Client, job_ids: list[str]) -> None:
    with psycopg.connect(platform.settings.database_url.replace("+asyncpg", "")) as connection:
        held = connection.execute("SELECT id FROM jobs WHERE lease_expires IS NOT NULL").fetchall()
    assert held == []
    assert [pid for job_id in job_ids for pid in processes_of(job_id)] == []
    states = {found.state for found in client.artifacts.verify(all=True)}
    assert states == {registry_pb2.ARTIFACT_STATE_OK}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_accepted_jobs_are_done_once_whatever_is_killed(kills: int) -> None:
    seed = int(os.environ.get("ANTHESIS_KILL_SEED") or random.SystemRandom().randrange(2**32))
    LOG.warning("ANTHESIS_KILL_SEED=%d", seed)
    with running(seed) as platform, Client(settings_of(platform)) as client, ThreadPoolExecutor(200) as pool:
        load = Load(platform=platform, client=client, waiting=3)
        submitting, asking = pool.submit(load.submit_and_watch, pool), pool.submit(load.ask_gateway)
        try:
            wait_for(lambda: bool(load.accepted) or submitting.done(), 60, "the first job to be accepted")
            assert load.accepted, submitting.result()
            strike(platform, kills, random.Random(seed))
        finally:
            load.stopped.set()
        submitting.result()
        answers = asking.result()
        events = {job_id: watch.result(SETTLE_S) for job_id, watch in load.accepted.items()}

        assert events
        for job_id in events:
            job = client.jobs.get(job_id)
            assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
            assert_events_have_no_gap(events[job_id])
        assert_done_once(platform, client, list(events))
        assert_nothing_is_left(platform, client, list(events))
        LOG.warning("%d jobs; the gateway answered %s", len(events), dict(answers))
        assert answers["200"]
        assert "500" not in answers
