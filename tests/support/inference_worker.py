"""An inference worker for tests: real server, real engine processes, a registry in memory."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from anthesis.channel import open_aio_channel
from anthesis.v1 import inference_pb2 as pb
from anthesis.v1.inference_pb2_grpc import InferenceServiceStub

from services.common.artifacts import ArtifactStore
from services.common.auth import Principal
from services.common.errors import Unauthenticated, Unavailable
from services.inference.config import EngineConfig, WorkerConfig
from services.inference.loaded_version import AssignedVersion, VersionStatus
from services.inference.server import build_server
from services.inference.service import InferenceService
from services.inference.worker import Worker

PRINCIPALS = {"gateway-key": Principal("1", "gateway", "service"), "user-key": Principal("2", "ada", "user")}


async def authenticate(secret: str) -> Principal:
    if secret not in PRINCIPALS:
        raise Unauthenticated("unknown API key")
    return PRINCIPALS[secret]


class MemoryRegistry:
    """Assigns what a test sets; remembers what the worker told."""

    def __init__(self) -> None:
        self.assigned: list[AssignedVersion] = []
        self.down = False
        self.heard: list[dict[str, str]] = []  # of each heartbeat: version -> state
        self._heartbeat = asyncio.Condition()

    async def heartbeat(
        self, worker_id: str, address: str, device: str, versions: list[VersionStatus]
    ) -> list[AssignedVersion]:
        async with self._heartbeat:
            self.heard.append({version.name: version.state for version in versions})
            self._heartbeat.notify_all()
        if self.down:
            raise Unavailable("the registry is down")
        return self.assigned

    async def wait_for(self, condition: Callable[[dict[str, str]], bool], timeout_s: float = 60) -> None:
        """Return once a heartbeat's states satisfy `condition`."""

        async def wait() -> None:
            async with self._heartbeat:
                await self._heartbeat.wait_for(lambda: bool(self.heard) and condition(self.heard[-1]))

        await asyncio.wait_for(wait(), timeout_s)


@dataclass(kw_only=True)
class RunningWorker:
    registry: MemoryRegistry
    store: ArtifactStore
    worker: Worker
    address: str
    stub: Any
    channel: grpc.aio.Channel

    def generate(self, version: str, prompt_ids: Iterable[int], **sampling: Any) -> Any:
        """The call, to iterate over or to cancel; greedy unless a temperature is given."""
        params = pb.SamplingParams(**({"temperature": 0.0} | sampling))
        return self.stub.Generate(
            pb.InferenceServiceGenerateRequest(model_version=version, prompt_ids=prompt_ids, sampling=params)
        )

    async def generated(self, version: str, prompt_ids: Iterable[int], **sampling: Any) -> list[int]:
        return [t.id async for message in self.generate(version, prompt_ids, **sampling) for t in message.tokens]

    async def models(self) -> dict[str, pb.LoadedModel]:
        status = await self.stub.GetWorkerStatus(pb.GetWorkerStatusRequest())
        return {model.model_version: model for model in status.models}

    async def load(self, *versions: AssignedVersion) -> None:
        """Assign exactly these and wait until they, and no others, are ready."""
        self.registry.assigned = list(versions)
        expected = {version.name: "READY" for version in versions}
        await self.registry.wait_for(lambda states: states == expected)

    def engine_pid(self, version: str) -> int:
        return self.worker.version(version).engine._process.pid


@asynccontextmanager
async def running_worker(**engine: Any) -> AsyncIterator[RunningWorker]:
    """A worker with nothing loaded, on a free port."""
    folder = Path(tempfile.mkdtemp(prefix="an-"))
    settings = {"dtype": "float32", "threads": 1, "max_kv_bytes": 8 << 20} | engine
    config = WorkerConfig(engine=EngineConfig(**settings), heartbeat_s=0.05, unload_grace_s=0.1, retry_s=0.2)
    registry = MemoryRegistry()
    store = ArtifactStore(str(folder / "artifacts"), folder / "cache")
    worker = Worker(registry, store, folder / "models", config, worker_id="worker-1", address="127.0.0.1:0")
    server = build_server("127.0.0.1:0", InferenceService(worker), authenticate)
    address = f"127.0.0.1:{await server.start()}"
    tasks = [asyncio.create_task(task) for task in (worker.run(), worker.tell_health(server.set_serving))]
    channel = open_aio_channel(address, "gateway-key")
    try:
        yield RunningWorker(
            registry=registry,
            store=store,
            worker=worker,
            address=address,
            stub=InferenceServiceStub(channel),
            channel=channel,
        )
    finally:
        await channel.close()
        for task in tasks:
            task.cancel()
        await server.stop(grace_s=0)
        await worker.close()
        shutil.rmtree(folder, ignore_errors=True)


async def until(condition: Callable[[], Any], timeout_s: float = 30) -> None:
    """Ask again and again until the awaited `condition()` is true."""

    async def ask() -> None:
        while not await condition():  # noqa: ASYNC110 - the answer is in another process
            await asyncio.sleep(0.01)

    await asyncio.wait_for(ask(), timeout_s)
