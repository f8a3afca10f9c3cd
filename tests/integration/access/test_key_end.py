"""Streams of the running servers end with the keys that opened them: with the reason, and what they held is free."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import grpc
import httpx
import pytest
from anthesis import AsyncClient, Settings
from anthesis.channel import open_aio_channel
from anthesis.errors import UnauthenticatedError
from anthesis.v1 import generation_pb2, generation_pb2_grpc, job_pb2
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub

from services.common.auth import Principal
from services.common.errors import Unauthenticated
from services.registry.config import read_pepper
from services.registry.database import utc_now
from services.registry.keys import Keys
from tests.support import gateway_backends
from tests.support.gateway_backends import USER_KEY, Backends, running_gateway
from tests.support.registry_data import text_rows
from tests.support.registry_server import RunningRegistry, running_registry
from tests.support.tokenizers import small_tokenizer_json

LOOK_S = 0.02
WITHIN_S = 30


@pytest.fixture
async def registry() -> AsyncIterator[RunningRegistry]:
    async with running_registry(check_keys_s=LOOK_S) as running, asyncio.timeout(WITHIN_S):
        yield running


@pytest.fixture
async def job(registry: RunningRegistry) -> str:
    """One that waits for a worker, so nothing happens to it."""
    async with client(registry, registry.admin_key) as admin:
        rows = await admin.artifacts.upload_bytes(text_rows())
        await admin.datasets.create("rows", rows.digest, pb.DATASET_FORMAT_TEXT)
        tokenizer = await admin.artifacts.upload_bytes(small_tokenizer_json().encode())
        spec = job_pb2.PretrainSpec(
            output_model="seedling",
            tokenizer_digest=tokenizer.digest,
            datasets=["rows"],
            config='{"model_type": "bloom", "hidden_size": 12, "n_layer": 2, "n_head": 3, "vocab_size": 0}',
            options=job_pb2.TrainOptions(steps=1),
        )
        return (await admin.jobs.create(spec)).id


def client(registry: RunningRegistry, key: str) -> AsyncClient:
    return AsyncClient(Settings(api_key=key, registry_address=registry.address))


def keys_of(registry: RunningRegistry) -> Keys:
    return Keys(registry.database, read_pepper(registry.data_dir, {}))


async def test_a_watch_ends_when_its_key_is_revoked_and_anothers_goes_on(registry, job) -> None:
    _, others = await keys_of(registry).create("bob", "viewer")
    key, secret = await keys_of(registry).create("ada", "viewer")
    async with client(registry, secret) as ada, client(registry, others) as bob:
        watches = ada.jobs.watch(job), bob.jobs.watch(job)
        for watch in watches:
            assert (await anext(watch)).state == job_pb2.JOB_STATE_PENDING
        async with client(registry, registry.admin_key) as admin:
            await admin.keys.revoke(key.id)
            with pytest.raises(UnauthenticatedError, match="the API key was revoked; ask an admin for a new one"):
                await anext(watches[0])
            await admin.jobs.cancel(job)
        assert (await anext(watches[1])).state == job_pb2.JOB_STATE_CANCELLED


async def test_a_watch_ends_when_its_keys_time_is_over(registry, job) -> None:
    expires = utc_now() + timedelta(seconds=1)
    _, secret = await keys_of(registry).create("ada", "viewer", expire_time=expires)
    async with client(registry, secret) as ada:
        with pytest.raises(UnauthenticatedError, match="the API key expired at"):
            async for _ in ada.jobs.watch(job):
                pass
    assert utc_now() >= expires


async def test_an_upload_ends_with_its_key_and_another_key_of_its_principal_goes_on(registry) -> None:
    data = b"a" * (3 << 20)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    key, secret = await keys_of(registry).create("ada", "trainer")
    _, another = await keys_of(registry).create("ada", "trainer")
    begin = pb.BeginUploadRequest(digest=digest, size_bytes=len(data))
    async with open_aio_channel(registry.address, secret) as channel:
        stub = RegistryServiceStub(channel)
        begun = await stub.BeginUpload(begin)
        header = pb.UploadHeader(digest=digest, size_bytes=len(data), upload_id=begun.upload_id)

        async def parts() -> AsyncIterator[pb.UploadArtifactRequest]:
            yield pb.UploadArtifactRequest(header=header)
            yield pb.UploadArtifactRequest(data=data[: 1 << 20])
            staged = registry.artifacts.staging / begun.upload_id
            while staged.stat().st_size < 1 << 20:  # noqa: ASYNC110 (another thread writes the file)
                await asyncio.sleep(0.01)
            await keys_of(registry).revoke(key.id)
            await asyncio.Event().wait()

        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await stub.UploadArtifact(parts())
    assert ended.value.code() == grpc.StatusCode.UNAUTHENTICATED
    async with open_aio_channel(registry.address, another) as channel:
        again = await RegistryServiceStub(channel).BeginUpload(begin)
    assert (again.upload_id, again.offset_bytes) == (begun.upload_id, 1 << 20)


@pytest.fixture
async def revoked() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
async def backends(tmp_path: Path, revoked: asyncio.Event) -> AsyncIterator[Backends]:
    async def verify(secret: str) -> Principal:
        if secret == USER_KEY and revoked.is_set():
            raise Unauthenticated("the API key was revoked; ask an admin for a new one")
        return await gateway_backends.authenticate(secret)

    async with running_gateway(tmp_path, verify=verify, check_keys_s=LOOK_S) as running, asyncio.timeout(WITHIN_S):
        running.worker.pause_after = 1
        running.script(running.ids("first"), running.ids("never"))
        yield running


async def test_a_generation_ends_with_its_key_and_the_worker_is_freed(backends, revoked) -> None:
    async with open_aio_channel(backends.grpc_address, USER_KEY) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        call = stub.Generate(generation_pb2.GenerateRequest(model="demo", prompt="Hello"))
        assert (await call.read()).text == "first"
        revoked.set()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
    assert (ended.value.code(), ended.value.details()) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "the API key was revoked; ask an admin for a new one",
    )
    await backends.worker.cancelled.wait()


@pytest.mark.parametrize("prompt", ["Hello", ["Hello", "Hello"]])
async def test_a_streamed_completion_ends_with_its_key_in_an_event_that_says_so(backends, revoked, prompt) -> None:
    body = {"model": "demo", "prompt": prompt, "stream": True}
    headers = {"authorization": f"Bearer {USER_KEY}"}
    async with (
        httpx.AsyncClient(base_url=backends.http_url, headers=headers, timeout=WITHIN_S) as http,
        http.stream("POST", "/v1/completions", json=body) as response,
    ):
        events = [json.loads(line[6:]) async for line in _until_paused(response, revoked)]
    assert response.status_code == 200
    assert events[0]["choices"][0]["text"] == "first"
    assert events[-1] == {
        "error": {
            "message": "the API key was revoked; ask an admin for a new one",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }
    }
    await backends.worker.cancelled.wait()


async def _until_paused(response: httpx.Response, revoked: asyncio.Event) -> AsyncIterator[str]:
    """The lines with data; the key is revoked behind the first."""
    async for line in response.aiter_lines():
        if line:
            yield line
            revoked.set()
