"""Webhooks from a real registry through a real relay that is killed: everything is delivered, under one id each."""

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
from anthesis import AsyncClient, PretrainSpec, Settings, TrainOptions
from anthesis.errors import InvalidArgumentError
from anthesis.v1.registry_pb2 import DATASET_FORMAT_TEXT
from anthesis.v1.webhook_pb2 import WEBHOOK_DELIVERY_STATE_DELIVERED, WEBHOOK_DELIVERY_STATE_PENDING

from services.common.settings import ROOT, Platform
from tests.support.registry_data import text_rows, tokenizer_bytes
from tests.support.registry_server import RegistryProcess, platform_env, read_keys, test_platform
from tests.support.webhook_receiver import Receiver, running_receiver

ALLOWED = {"ANTHESIS_WEBHOOK_PRIVATE_HOSTS": "localhost", "ANTHESIS_WEBHOOK_TIMEOUT_SECONDS": "1"}
CONFIG = '{"model_type": "bloom", "hidden_size": 12, "n_layer": 2, "n_head": 3, "vocab_size": 300}'


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    platform = test_platform(tmp_path_factory.mktemp("webhooks") / "data")
    with RegistryProcess(platform, **ALLOWED):
        yield platform


@pytest.fixture
async def client(platform: Platform) -> AsyncIterator[AsyncClient]:
    key = read_keys(platform)["admin"]
    async with AsyncClient(Settings(api_key=key, registry_address=platform.registry_address)) as client:
        yield client


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with running_receiver() as running:
        yield running


def start_relay(platform: Platform) -> subprocess.Popen[bytes]:
    """It has no broker, which webhooks do not need."""
    environment = platform_env(platform) | {"ANTHESIS_BROKER_URL": "redis://127.0.0.1:1/0", **ALLOWED}
    return subprocess.Popen([sys.executable, "-m", "services.registry.relay"], env=environment, cwd=ROOT)


async def submit(client: AsyncClient, name: str) -> str:
    artifact = await client.artifacts.upload_bytes(text_rows())
    await client.datasets.create(name, artifact.digest, DATASET_FORMAT_TEXT)
    tokenizer = await client.artifacts.upload_bytes(tokenizer_bytes())
    spec = PretrainSpec(
        output_model=f"test/{name}",
        tokenizer_digest=tokenizer.digest,
        datasets=[name],
        config=CONFIG,
        options=TrainOptions(steps=5),
    )
    return (await client.jobs.create(spec)).id


async def test_what_is_accepted_is_delivered_though_the_relay_is_killed(client, platform, receiver) -> None:
    made = await client.webhooks.create(receiver.url(host="localhost"))
    moments = random.Random(4)
    expected = set()
    for round_number in range(3):
        relay = start_relay(platform)
        try:
            for number in range(3):
                job_id = await submit(client, f"hook-{round_number}-{number}")
                await client.jobs.pause(job_id)
                await client.jobs.cancel(job_id)
                expected |= {(job_id, "job.pending"), (job_id, "job.paused"), (job_id, "job.cancelled")}
            if round_number == 0:
                await receiver.until(lambda: bool(receiver.received))  # it is up the first time
            await asyncio.sleep(moments.uniform(0, 0.7))
        finally:
            relay.kill()
            relay.wait()
    relay = start_relay(platform)
    try:
        await receiver.until(lambda: events_of(receiver) == expected)
        assert relay.poll() is None
    finally:
        relay.terminate()
        assert relay.wait(30) == 0
    ids: dict[tuple[str, str], set[str]] = {}
    for request in receiver.received:
        data = json.loads(request.body)
        ids.setdefault((data["data"]["job_id"], data["type"]), set()).add(request.headers["webhook-id"])
    assert {len(found) for found in ids.values()} == {1}, "another id in another attempt"
    deliveries = [delivery async for delivery in client.webhooks.deliveries(made.webhook.id)]
    assert len(deliveries) == len(expected)
    states = {delivery.state for delivery in deliveries}
    assert states <= {WEBHOOK_DELIVERY_STATE_DELIVERED, WEBHOOK_DELIVERY_STATE_PENDING}
    await client.webhooks.delete(made.webhook.id)


def events_of(receiver: Receiver) -> set[tuple[str, str]]:
    bodies = [json.loads(request.body) for request in receiver.received]
    return {(body["data"]["job_id"], body["type"]) for body in bodies}


async def test_a_webhook_to_an_address_inside_is_refused(client) -> None:
    for url in ("https://127.0.0.1/hook", "https://169.254.169.254/latest/meta-data", "http://1.1.1.1/hook"):
        with pytest.raises(InvalidArgumentError, match="ANTHESIS_WEBHOOK_PRIVATE_HOSTS"):
            await client.webhooks.create(url)
    assert list(await client.webhooks.list()) == []


async def test_the_secret_is_shown_once(client) -> None:
    made = await client.webhooks.create("https://1.1.1.1/hook", ["job.succeeded"])
    assert made.secret.startswith("whsec_")
    [listed] = await client.webhooks.list()
    assert (listed.id, list(listed.event_types), listed.created_by) == (made.webhook.id, ["job.succeeded"], "admin")
    assert made.secret not in str(listed)
    await client.webhooks.delete(made.webhook.id)
