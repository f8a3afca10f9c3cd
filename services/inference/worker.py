"""Which versions this worker serves: what the registry assigns, without dropping what is under way."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from services.common.artifacts import ArtifactStore
from services.common.errors import DomainError, NotFound
from services.inference.config import WorkerConfig
from services.inference.loaded_version import AssignedVersion, LoadedVersion, VersionStatus

log = logging.getLogger(__name__)


class Registry(Protocol):
    """The control plane, as the worker sees it."""

    async def heartbeat(
        self, worker_id: str, address: str, device: str, versions: list[VersionStatus]
    ) -> list[AssignedVersion]:
        """Tell what is loaded; learn what should be. Raises DomainError when the registry cannot be asked."""
        ...


class Worker:
    """The versions on this machine, and the heartbeat that tells the registry of them."""

    def __init__(
        self,
        registry: Registry,
        store: ArtifactStore,
        models_dir: Path,
        config: WorkerConfig,
        *,
        worker_id: str,
        address: str,
    ) -> None:
        self.worker_id = worker_id
        self._registry = registry
        self._store = store
        self._models_dir = models_dir
        self._config = config
        self._address = address
        self._versions: dict[str, LoadedVersion] = {}
        self._unloading: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()  # the heartbeat has not told yet
        self._health_changed = asyncio.Event()
        self._loading = asyncio.Semaphore(1)

    @property
    def device(self) -> str:
        """As the engines found it; before the first is ready, as configured."""
        return next((v.device for v in self._versions.values() if v.device), self._config.engine.device)

    def version(self, name: str) -> LoadedVersion:
        """Raises NotFound, listing what there is."""
        version = self._versions.get(name)
        if version is None:
            loaded = ", ".join(sorted(self._versions)) or "nothing"
            raise NotFound(f"model version {name!r} is not loaded on this worker; loaded: {loaded}")
        return version

    def statuses(self) -> list[VersionStatus]:
        return [version.status() for version in self._versions.values()]

    async def run(self) -> None:
        """Heartbeat for ever: every few seconds, and at once after a change."""
        reachable = True
        while True:
            self._changed.clear()
            try:
                assigned = await self._registry.heartbeat(self.worker_id, self._address, self.device, self.statuses())
            except DomainError as error:
                if reachable:
                    log.warning("no heartbeat, what is loaded stays: %s", error)
                reachable = False
            else:
                reachable = True
                self.assign(assigned)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._config.heartbeat_s)

    async def tell_health(self, set_serving: Callable[[bool], Awaitable[None]]) -> None:
        """For ever, at once after a change: is this worker whole, or is an engine that has died not back yet?"""
        told = True
        while True:
            self._health_changed.clear()
            serving = not any(version.restarting for version in self._versions.values())
            if serving != told:
                told = serving
                await set_serving(serving)
            await self._health_changed.wait()

    def assign(self, assigned: list[AssignedVersion]) -> None:
        """Load what is new; once all assigned versions are ready, unload what is no longer among them."""
        for version in assigned:
            if version.name not in self._versions:
                log.info("loading %s", version.name)
                self._versions[version.name] = LoadedVersion(
                    version,
                    store=self._store,
                    models_dir=self._models_dir,
                    config=self._config,
                    loading=self._loading,
                    changed=self._note,
                )
                self._note()
        names = {version.name for version in assigned}
        if all(self._versions[name].state == "READY" for name in names):
            for name in self._versions.keys() - names - self._unloading.keys():
                self._unloading[name] = asyncio.create_task(self._unload(name))

    async def close(self) -> None:
        """End every engine at once."""
        for task in self._unloading.values():
            task.cancel()
        await asyncio.gather(*(version.close() for version in self._versions.values()))

    async def _unload(self, name: str) -> None:
        log.info("unloading %s", name)
        await self._versions[name].unload()
        del self._versions[name], self._unloading[name]
        self._note()

    def _note(self) -> None:
        """Something has changed of what this worker says of itself."""
        self._changed.set()
        self._health_changed.set()
