"""`python -m services.inference.server` beside a real registry."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from anthesis.channel import open_aio_channel
from anthesis.v1 import inference_pb2 as inf
from anthesis.v1 import registry_pb2 as reg
from anthesis.v1.inference_pb2_grpc import InferenceServiceStub
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub

from services.common.settings import ROOT
from tests.support.bloom_models import make_hf_folder
from tests.support.inference_worker import until
from tests.support.registry_server import RunningRegistry, platform_env, running_registry
from tests.support.tokenizers import small_tokenizer_json

VERSION = "test/tiny@1"


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[RunningRegistry]:
    """A registry that has one version, deployed everywhere."""
    async with running_registry() as running:
        stub = RegistryServiceStub(running.channel())
        store = running.artifacts
        folder = make_hf_folder(tmp_path / "model", vocab=512)
        files = [reg.ModelFile(path=path.name, digest=store.write_file(path)) for path in sorted(folder.iterdir())]
        tokenizer = store.write_bytes(small_tokenizer_json(512).encode())
        await stub.CreateModel(reg.CreateModelRequest(model=reg.Model(name="test/tiny", licence="Apache-2.0")))
        version = reg.ModelVersion(
            model="test/tiny", licence="Apache-2.0", tokenizer_digest=tokenizer, files=files, source="import"
        )
        await stub.CreateModelVersion(reg.CreateModelVersionRequest(version=version))
        deployment = reg.Deployment(name="tiny", target=VERSION)
        await stub.CreateDeployment(reg.CreateDeploymentRequest(deployment=deployment))
        yield running


@contextmanager
def server_process(registry: RunningRegistry) -> Iterator[subprocess.Popen[bytes]]:
    env = platform_env(registry.platform) | {"ANTHESIS_INFERENCE_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "services.inference.server"], env=env, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def wait_until_served(registry: RunningRegistry, process: subprocess.Popen[bytes]) -> None:
    """Return when the registry names a worker for the version."""
    stub = RegistryServiceStub(registry.channel("gateway"))
    workers: list[reg.Worker] = []

    async def served() -> bool:
        assert process.poll() is None, "the server ended"
        answer = await stub.ResolveModel(reg.ResolveModelRequest(name=VERSION))
        workers[:] = answer.workers
        return bool(workers)

    await until(served, timeout_s=60)
    assert workers[0].address == registry.platform.inference_address
    assert workers[0].max_sequence_tokens == 2048


def generate(stub: InferenceServiceStub, max_tokens: int) -> Any:
    sampling = inf.SamplingParams(temperature=0, max_tokens=max_tokens)
    return stub.Generate(
        inf.InferenceServiceGenerateRequest(model_version=VERSION, prompt_ids=[5, 6, 7], sampling=sampling)
    )


async def test_a_deployed_version_is_served_and_sigterm_lets_its_streams_end(registry: RunningRegistry):
    with server_process(registry) as process:
        await wait_until_served(registry, process)
        async with open_aio_channel(registry.platform.inference_address, registry.keys["gateway"]) as channel:
            call = generate(InferenceServiceStub(channel), 1500)
            num_tokens = len((await call.read()).tokens)
            process.send_signal(signal.SIGTERM)
            num_tokens += sum([len(message.tokens) async for message in call])
        assert num_tokens == 1500
        assert await asyncio.to_thread(process.wait, 20) == 0


async def test_killing_the_worker_leaves_no_engine_behind(registry: RunningRegistry):
    with server_process(registry) as process:
        await wait_until_served(registry, process)
        (engine,) = psutil.Process(process.pid).children()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        engine.wait(timeout=5)  # not our child: waits until it is gone
        assert not engine.is_running()
