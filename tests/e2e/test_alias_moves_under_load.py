"""An alias that two workers serve moves, and is rolled back, while 32 streams never pause."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC

import pytest
from anthesis import AsyncClient, Client, SamplingParams
from anthesis.v1.registry_pb2 import Deployment, Model

from services.common.settings import ROOT
from tests.e2e.conftest import LocalPlatform, add_version
from tests.support.registry_server import free_address
from tests.support.training_platform import wait_for

ALIAS, MODEL = "mover-live", "mover"
STREAMS = 32
TIMEOUT_S = 120
SAMPLING = SamplingParams(temperature=0.0, max_tokens=24)


@pytest.fixture
def second_worker(platform: LocalPlatform) -> Iterator[None]:
    own = {"ANTHESIS_INFERENCE_ADDRESS": free_address(), "ANTHESIS_INFERENCE_WORKER_ID": "second"}
    command = [sys.executable, "-m", "services.inference.server"]
    process = subprocess.Popen(command, cwd=ROOT, env={**platform.environment, **own})
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def client(platform: LocalPlatform) -> Client:
    return platform.client


def deployment(client: Client) -> Deployment:
    return next(item for item in client.deployments.list() if item.name == ALIAS)


def wait_until_both_serve(client: Client) -> None:
    wait_for(lambda: deployment(client).ready_replicas == 2, TIMEOUT_S, "two workers to be ready")


class Load:
    """Streams that ask the alias again as soon as they are answered."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._answered = asyncio.Condition()
        self._latest = dict.fromkeys(range(STREAMS), "")  # the version that answered each stream last
        self.texts: dict[str, set[str]] = {}  # of each version
        self.num_answers = 0

    async def stream(self, number: int) -> None:
        while True:
            answer = await self._client.complete(ALIAS, "Bonjour, dit le jardinier", SAMPLING)
            async with self._answered:
                self._latest[number] = answer.model_version
                self.texts.setdefault(answer.model_version, set()).add(answer.text)
                self.num_answers += 1
                self._answered.notify_all()

    async def until_all_answers_are_of(self, version: str) -> None:
        async with asyncio.timeout(TIMEOUT_S), self._answered:
            await self._answered.wait_for(lambda: set(self._latest.values()) == {version})


@pytest.mark.usefixtures("second_worker")
async def test_no_request_fails_and_each_answer_is_wholly_of_one_version(
    platform: LocalPlatform, client: Client
) -> None:
    client.models.create(Model(name=MODEL, licence="apache-2.0"))
    one, two = (add_version(client, MODEL, seed=seed).name for seed in (1, 2))
    client.aliases.set(ALIAS, one)
    client.deployments.create(ALIAS)
    try:
        await asyncio.to_thread(wait_until_both_serve, client)
        async with AsyncClient(platform.settings) as loaded, asyncio.TaskGroup() as group:
            load = Load(loaded)
            streams = [group.create_task(load.stream(number)) for number in range(STREAMS)]
            await load.until_all_answers_are_of(one)
            moved = await loaded.aliases.set(ALIAS, two)
            await load.until_all_answers_are_of(two)
            back = await loaded.aliases.rollback(ALIAS)
            await load.until_all_answers_are_of(one)
            for task in streams:
                task.cancel()
    finally:
        client.deployments.delete(ALIAS)

    assert set(load.texts) == {one, two}
    assert [len(texts) for texts in load.texts.values()] == [1, 1]  # greedy: another text would be of both
    assert load.texts[one] != load.texts[two]
    assert load.num_answers >= 3 * STREAMS
    assert client.aliases.resolve(ALIAS, at=moved.update_time.ToDatetime(UTC)).version.name == two
    assert client.aliases.resolve(ALIAS, at=back.update_time.ToDatetime(UTC)).version.name == one
    changes = [entry.value for entry in client.audit.list(resource=f"deployment/{ALIAS}")]  # the newest first
    assert [value for value in changes if value.startswith("serves")] == [f"serves {v}" for v in (one, two, one)]
