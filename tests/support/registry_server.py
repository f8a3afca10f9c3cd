"""A real registry for tests: temporary data folder, free port, keys as bootstrap makes them.

async with running_registry() as registry:              # in this process
    stub = RegistryServiceStub(registry.channel())       # as admin; channel("trainer") as a service

with RegistryProcess(platform) as process: ...           # in a process of its own, to be killed
"""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import grpc
from anthesis.channel import open_aio_channel, open_channel

from services.common.artifacts import ArtifactStore
from services.common.server import GrpcServer
from services.common.settings import ROOT, Platform
from services.registry.bootstrap import PRINCIPALS, bootstrap
from services.registry.config import RegistryConfig
from services.registry.database import Database
from services.registry.server import build_server


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_platform(data_dir: Path, **changes: Any) -> Platform:
    """A platform on free ports whose data lie in `data_dir`."""
    names = ("TOKENIZER", "INFERENCE", "REGISTRY", "GATEWAY", "GATEWAY_HTTP")
    env = {f"ANTHESIS_{name}_ADDRESS": free_address() for name in names} | {"ANTHESIS_DATA": str(data_dir)}
    return replace(Platform.from_env(env), **changes)


test_platform.__test__ = False  # type: ignore[attr-defined]


@dataclass(kw_only=True)
class RunningRegistry:
    address: str  # host:port
    platform: Platform  # `registry_address` is `address`
    keys: dict[str, str]  # principal -> API key: admin, gateway, tokenizer, inference, trainer, relay
    database: Database
    server: GrpcServer
    _channels: list[grpc.aio.Channel] = field(default_factory=list)

    @property
    def data_dir(self) -> Path:
        return self.platform.data_dir

    @property
    def admin_key(self) -> str:
        return self.keys["admin"]

    @property
    def artifacts(self) -> ArtifactStore:
        """The store that the registry reads: write test weights straight into it."""
        return ArtifactStore(self.platform.artifacts_url, self.data_dir / "cache" / "test")

    def channel(self, principal: str = "admin") -> grpc.aio.Channel:
        """An open channel that calls as `principal`; closed with the registry."""
        self._channels.append(open_aio_channel(self.address, self.keys[principal]))
        return self._channels[-1]

    async def close_channels(self) -> None:
        for channel in self._channels:
            await channel.close()


@asynccontextmanager
async def running_registry(
    *, data_dir: Path | None = None, database_url: str | None = None, **config: Any
) -> AsyncIterator[RunningRegistry]:
    """A registry in this process and event loop. `config`: fields of RegistryConfig, e.g. `job_lease_s=1.0`."""
    made = Path(tempfile.mkdtemp(prefix="an-")) if data_dir is None else None
    platform = test_platform(data_dir or made, **({"database_url": database_url} if database_url else {}))
    await asyncio.to_thread(bootstrap, platform)
    database = Database(platform.database_url)
    settings = RegistryConfig(
        **{
            "address": "127.0.0.1:0",
            "database_url": platform.database_url,
            "artifacts_url": platform.artifacts_url,
            "data_dir": platform.data_dir,
            "pepper": (platform.data_dir / "keys" / "pepper").read_bytes().strip(),
            "watch_poll_s": 0.02,
            **config,
        }
    )
    server = build_server(settings, database)
    address = f"127.0.0.1:{await server.start()}"
    registry = RunningRegistry(
        address=address,
        platform=replace(platform, registry_address=address),
        keys=read_keys(platform),
        database=database,
        server=server,
    )
    try:
        yield registry
    finally:
        await registry.close_channels()
        await server.stop(grace_s=0)
        await database.close()
        if made:
            shutil.rmtree(made, ignore_errors=True)


def read_keys(platform: Platform) -> dict[str, str]:
    return {principal: platform.key_path(principal).read_text().strip() for principal in PRINCIPALS}


def platform_env(platform: Platform) -> dict[str, str]:
    """The environment that gives another process this platform."""
    names = ("database_url", "artifacts_url", "broker_url", "tokenizer_address", "inference_address")
    names += ("registry_address", "gateway_address", "gateway_http_address")
    settings = {f"ANTHESIS_{name.upper()}": str(getattr(platform, name)) for name in names}
    return {**os.environ, **settings, "ANTHESIS_DATA": str(platform.data_dir), "PYTHONPATH": str(ROOT)}


class RegistryProcess:
    """`python -m services.registry.server` on `platform.registry_address`, bootstrapped; killed at the end."""

    def __init__(self, platform: Platform, **env: str) -> None:
        self.platform = platform
        self._env = platform_env(platform) | env
        with ThreadPoolExecutor(1) as pool:  # it runs an event loop, which a thread that has one cannot
            pool.submit(bootstrap, platform).result()
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-m", "services.registry.server"], env=self._env, cwd=ROOT)
        self._wait_until_ready(process)
        return process

    def _wait_until_ready(self, process: subprocess.Popen[bytes], timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        channel = open_channel(self.platform.registry_address, "")
        ready = grpc.channel_ready_future(channel)
        while True:
            try:
                return ready.result(timeout=0.2)
            except grpc.FutureTimeoutError:
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    raise RuntimeError(f"the registry did not start: {process.args}") from None

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Start again after `kill`, on the same address and data."""
        self.process = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
