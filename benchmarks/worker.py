"""The client of a worker process: starts it, calls it, looks at it from outside."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from anthesis.channel import open_aio_channel
from anthesis.v1 import inference_pb2 as pb
from anthesis.v1.inference_pb2_grpc import InferenceServiceStub

from benchmarks.protocol import status_bytes
from benchmarks.worker_process import KEY, VERSION
from services.common.settings import ROOT

LOAD_TIMEOUT_S = 300.0
POLL_S = 0.05


@dataclass(kw_only=True, slots=True)
class WorkerProcess:
    """A worker that is ready."""

    address: str
    process: asyncio.subprocess.Process
    channel: grpc.aio.Channel
    stub: Any
    log: Path

    def generate(
        self, prompt_ids: Sequence[int], max_tokens: int, *, timeout_s: float | None = None, **sampling: Any
    ) -> Any:
        """The call, to iterate over; greedy unless told otherwise."""
        params = pb.SamplingParams(**{"temperature": 0.0, "max_tokens": max_tokens} | sampling)
        request = pb.InferenceServiceGenerateRequest(model_version=VERSION, prompt_ids=prompt_ids, sampling=params)
        return self.stub.Generate(request, timeout=timeout_s)

    async def model(self) -> pb.LoadedModel | None:
        """What the worker says of its version; None before it knows it."""
        status = await self.stub.GetWorkerStatus(pb.GetWorkerStatusRequest(), timeout=10)
        return next(iter(status.models), None)

    async def wait_until_ready(self, timeout_s: float = LOAD_TIMEOUT_S) -> pb.LoadedModel:
        """Raises RuntimeError when the version cannot be loaded, TimeoutError when that takes too long."""
        async with asyncio.timeout(timeout_s):
            while True:
                model = await self.model()
                if model is not None and model.state == pb.MODEL_LOAD_STATE_READY:
                    return model
                if model is not None and model.state == pb.MODEL_LOAD_STATE_FAILED:
                    raise RuntimeError(f"the worker cannot load its model: {model.error}; see {self.log}")
                await asyncio.sleep(POLL_S)

    async def wait_until_free(self, timeout_s: float) -> tuple[int, int]:
        """Free and all blocks of a ready engine: at once when all are free, else after `timeout_s`."""
        clock = asyncio.get_running_loop().time
        end = clock() + LOAD_TIMEOUT_S
        seen = None
        while clock() < end:
            model = await self.model()
            if model is not None and model.state == pb.MODEL_LOAD_STATE_READY and model.num_kv_blocks:
                if seen is None:
                    seen, end = model, clock() + timeout_s
                seen = model
                if model.num_free_kv_blocks == model.num_kv_blocks and model.num_running == 0:
                    break
            await asyncio.sleep(POLL_S)
        if seen is None:
            raise TimeoutError(f"no engine for {LOAD_TIMEOUT_S:g} s; see {self.log}")
        return seen.num_free_kv_blocks, seen.num_kv_blocks

    async def num_tasks(self) -> int:
        """asyncio tasks of the worker."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"tasks\n")
        await self.process.stdin.drain()
        return int(json.loads(await self.process.stdout.readline())["tasks"])

    def engine_pids(self) -> list[int]:
        pid = self.process.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def num_files(self) -> int:
        """Open file descriptors of the worker."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def resident_bytes(self) -> int:
        return status_bytes("VmRSS", self.process.pid)


@asynccontextmanager
async def running_worker(model: Path, engine: Mapping[str, Any], *, log: Path) -> AsyncIterator[WorkerProcess]:
    """Start, wait until the model is loaded, and end. `engine`: fields of EngineConfig; `log`: what it writes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "benchmarks.worker_process",
            str(model),
            json.dumps(engine),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), LOAD_TIMEOUT_S)
        if not line:
            raise RuntimeError(f"the worker ended with exit code {await process.wait()}; see {log}")
        address = json.loads(line)["address"]
        async with open_aio_channel(address, KEY) as channel:
            worker = WorkerProcess(
                address=address, process=process, channel=channel, stub=InferenceServiceStub(channel), log=log
            )
            await worker.wait_until_ready()
            yield worker
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            process.kill()
            await process.wait()
