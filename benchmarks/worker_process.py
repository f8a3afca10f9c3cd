"""A real inference worker with one version: `python -m benchmarks.worker_process MODEL ENGINE_JSON`.

Server, worker and engine processes are the product's; the registry alone is replaced, by one that has assigned the
version for good. Says its address in one line of JSON, then answers each line on standard input with one more: the
number of its asyncio tasks. Ends with its standard input.
"""

import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path

from bloom.weights import load_config
from services.common.artifacts import ArtifactStore
from services.common.auth import Principal
from services.common.logs import set_up_logging
from services.inference.config import EngineConfig, WorkerConfig
from services.inference.loaded_version import AssignedVersion, VersionStatus
from services.inference.server import build_server
from services.inference.service import InferenceService
from services.inference.worker import Worker

VERSION = "benchmark@1"
KEY = "benchmark"
HEARTBEAT_S = 0.5


class FixedRegistry:
    """The control plane of a benchmark: one version, for ever."""

    def __init__(self, assigned: AssignedVersion) -> None:
        self._assigned = assigned

    async def heartbeat(
        self, worker_id: str, address: str, device: str, versions: list[VersionStatus]
    ) -> list[AssignedVersion]:
        return [self._assigned]


async def authenticate(secret: str) -> Principal:
    return Principal(key_id="1", name=secret, role="service")


def assign(store: ArtifactStore, model: Path) -> AssignedVersion:
    """The folder's files in the store; every row of the head counts as a token."""
    files = [model / "config.json", *sorted(model.glob("*.safetensors*"))]
    vocabulary = {str(id_): id_ for id_ in range(load_config(model).vocab_size)}
    tokenizer = store.write_bytes(json.dumps({"model": {"vocab": vocabulary}}).encode())
    return AssignedVersion(VERSION, tuple((file.name, store.write_file(file)) for file in files), tokenizer)


async def serve(model: Path, engine: EngineConfig, folder: Path) -> None:
    store = ArtifactStore(str(folder / "artifacts"), folder / "cache")
    registry = FixedRegistry(await asyncio.to_thread(assign, store, model))
    config = WorkerConfig(engine=engine, heartbeat_s=HEARTBEAT_S, retry_s=0.2)
    worker = Worker(registry, store, folder / "models", config, worker_id="benchmark", address="127.0.0.1:0")
    server = build_server("127.0.0.1:0", InferenceService(worker), authenticate)
    port = await server.start()
    heartbeats = asyncio.create_task(worker.run())
    print(json.dumps({"address": f"127.0.0.1:{port}"}), flush=True)
    questions = await _standard_input()
    while await questions.readline():
        print(json.dumps({"tasks": len(asyncio.all_tasks())}), flush=True)
    await server.stop(grace_s=0)
    heartbeats.cancel()
    await worker.close()


async def _standard_input() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def main() -> None:
    set_up_logging("inference")
    model, engine = Path(sys.argv[1]), EngineConfig(**json.loads(sys.argv[2]))
    folder = Path(tempfile.mkdtemp(prefix="an-", dir=model.parent))  # beside the model: as large as it
    try:
        asyncio.run(serve(model, engine, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
