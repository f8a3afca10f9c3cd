"""Requests that nobody means, to every RPC of every service: each gets an answer that says what is wrong with it.

ANTHESIS_FUZZ_REQUESTS says how many, ANTHESIS_FUZZ_SEED which.
"""

import asyncio
import gc
import os
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from anthesis.v1 import job_pb2, job_pb2_grpc, registry_pb2, registry_pb2_grpc
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from services.common.access import Permission
from tests.support.access_matrix import SERVED_BY, TABLES, Doors, open_doors, services
from tests.support.fuzz import requests
from tests.support.registry_data import multitask_rows, store_checkpoint, text_rows

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(3600)]
REQUESTS = int(os.environ.get("ANTHESIS_FUZZ_REQUESTS") or 400)
SEED = int(os.environ.get("ANTHESIS_FUZZ_SEED") or 1)
PATIENCE_S = 10.0
BROKEN = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.DATA_LOSS}
# What a refused call may leave: that it was refused, when its key was used, and what came of an upload that broke off.
LEFT = {"audit_entries", "api_keys", "uploads"}
METHODS = [(service, method) for service in services() for method in service.methods]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def doors(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Doors]:
    async with open_doors(tmp_path_factory.mktemp("data")) as opened:
        yield opened


async def plant(doors: Doors) -> list[str]:
    """Something of each kind; return its names."""
    registry = registry_pb2_grpc.RegistryServiceStub(doors.registry.channel())
    jobs = job_pb2_grpc.JobServiceStub(doors.registry.channel())
    stored = store_checkpoint(doors.registry.artifacts)
    files = [registry_pb2.ModelFile(path=file.path, digest=file.digest) for file in stored.files]
    version = registry_pb2.ModelVersion(model="seedling", files=files, tokenizer_digest=stored.tokenizer_digest)
    await registry.CreateModel(
        registry_pb2.CreateModelRequest(model=registry_pb2.Model(name="seedling", licence="mit"))
    )
    for _ in range(2):
        await registry.CreateModelVersion(registry_pb2.CreateModelVersionRequest(version=version))
    await registry.SetAlias(registry_pb2.SetAliasRequest(name="flower", version="seedling@1"))
    for name, form, content in (("texts", "TEXT", text_rows()), ("tasks", "MULTITASK", multitask_rows())):
        digest = doors.registry.artifacts.write_bytes(content)
        kind = registry_pb2.DatasetFormat.Value(f"DATASET_FORMAT_{form}")
        await registry.CreateDataset(registry_pb2.CreateDatasetRequest(name=name, format=kind, digest=digest))
    options = job_pb2.TrainOptions(steps=1)
    spec = job_pb2.FineTuneSpec(output_model="tuned", base="flower", datasets=["tasks"], options=options)
    job = (await jobs.CreateJob(job_pb2.CreateJobRequest(fine_tune=spec))).job
    return ["seedling", "seedling@1", "seedling@2", "flower", "texts", "tasks", "mit", "admin", job.id, digest]


@dataclass(kw_only=True)
class Fuzzer:
    """Sends one request after another, and looks at the database after each that was refused."""

    doors: Doors
    channels: dict[str, grpc.aio.Channel]
    database: sqlite3.Connection
    answers: Counter[str] = field(default_factory=Counter)
    faults: dict[str, str] = field(default_factory=dict)  # what went wrong -> the first request that made it
    _rows: dict[str, list[Any]] = field(default_factory=dict)
    _version: int = -1

    async def send(self, service: Any, method: Any, request: Any) -> None:
        code = await self._call(service, method, request)
        self.answers[code.name] += 1
        if code in BROKEN:
            self.faults.setdefault(f"{service.name}.{method.name}: {code.name}", str(request)[:500])
        version = self.database.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            before, self._rows, self._version = self._rows, self._dump(), version
            if before and code != grpc.StatusCode.OK:
                changed = [table for table in before if before[table] != self._rows[table]]
                if set(changed) - LEFT:
                    what = f"{service.name}.{method.name}: {code.name}, but {', '.join(changed)} changed"
                    self.faults.setdefault(what, str(request)[:500])

    async def _call(self, service: Any, method: Any, request: Any) -> grpc.StatusCode:
        role = "service" if TABLES[service.name][method.name] == Permission.INTERNAL else "admin"
        names = {False: "unary", True: "stream"}
        kind = f"{names[method.client_streaming]}_{names[method.server_streaming]}"
        path = f"/{service.full_name}/{method.name}"
        call = getattr(self.channels[SERVED_BY[service.name]], kind)(path)(
            iter([request.SerializeToString()]) if method.client_streaming else request.SerializeToString(),
            metadata=(("authorization", self.doors.headers[role]),),
            timeout=PATIENCE_S,
        )
        try:
            if not method.server_streaming:
                await call
            else:
                async for _ in call:  # what waits for something to happen says nothing more: one message is an answer
                    call.cancel()
                    break
        except grpc.aio.AioRpcError as error:
            return error.code()
        except asyncio.CancelledError:
            assert call.cancelled()
        return grpc.StatusCode.OK

    def _dump(self) -> dict[str, list[Any]]:
        tables = [name for (name,) in self.database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: self.database.execute(f"SELECT * FROM {name}").fetchall() for name in tables}  # noqa: S608


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def test_every_request_is_answered_and_one_that_is_refused_changes_nothing(doors: Doors) -> None:
    known = await plant(doors)
    loop = asyncio.get_running_loop()
    database = sqlite3.connect(str(make_url(doors.registry.platform.database_url).database), check_same_thread=False)
    channels = {name: grpc.aio.insecure_channel(address) for name, address in doors.addresses.items()}
    fuzzer = Fuzzer(doors=doors, channels=channels, database=database)

    @seed(SEED)
    @settings(
        max_examples=REQUESTS,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # what went wrong depends on what went before: there is nothing to shrink
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        service, method = data.draw(st.sampled_from(METHODS))
        request = data.draw(requests(method.input_type, known))
        asyncio.run_coroutine_threadsafe(fuzzer.send(service, method, request), loop).result(2 * PATIENCE_S)

    for service, method in METHODS:  # connections, threads and caches that stay
        await fuzzer.send(service, method, GetMessageClass(method.input_type)())
    gc.collect()
    before = open_files(), len(asyncio.all_tasks())
    memory = resident_mb()
    await asyncio.to_thread(fuzz)
    gc.collect()
    after = open_files(), len(asyncio.all_tasks())
    grown = resident_mb() - memory
    for channel in channels.values():
        await channel.close()
    database.close()
    print(f"\n{sum(fuzzer.answers.values())} requests, seed {SEED}: {dict(fuzzer.answers.most_common())}")
    print(f"files and tasks {before} before, {after} after; memory {grown:+.0f} MB")
    assert fuzzer.faults == {}
    assert after[0] <= before[0] + 8, "file descriptors leak"  # threads' event loops and the executor's pipes
    assert after[1] <= before[1] + 2, "tasks leak"
    assert grown < 200  # MB, the fuzzer and what it remembers included
    assert fuzzer.answers["OK"]
    assert len(fuzzer.answers) >= 4, "the fuzzer does not get past the door"
