"""One model version on this worker, from its files in the artifact store to its last call."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.common.artifacts import ArtifactStore
from services.common.errors import DomainError, NotFound, Unavailable
from services.inference.config import WorkerConfig
from services.inference.engine_client import EngineClient, EngineFailed
from services.inference.messages import Ready, Start, Stats

STABLE_S = 60.0  # an engine that lived this long is restarted at once when it dies
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AssignedVersion:
    """What the registry wants loaded."""

    name: str  # "<model>@<number>"
    files: tuple[tuple[str, str], ...]  # (relative path, digest): config.json, safetensors, index
    tokenizer_digest: str


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """What the worker says of a version. `load` counts calls running and waiting."""

    name: str
    state: str  # LOADING, READY, FAILED, UNLOADING
    error: str
    max_sequence_tokens: int
    load: int
    stats: Stats


class LoadedVersion:
    """Keeps an engine process running for one version; restarts it when it dies."""

    def __init__(
        self,
        assigned: AssignedVersion,
        *,
        store: ArtifactStore,
        models_dir: Path,
        config: WorkerConfig,
        loading: asyncio.Semaphore,
        changed: Callable[[], None],
    ) -> None:
        self.name = assigned.name
        self.state = "LOADING"
        self.error = ""
        self.num_token_ids = 0
        self.max_sequence_tokens = 0
        self.device = ""
        self.restarting = False  # its engine has died, and is not back
        self._assigned = assigned
        self._store = store
        self._models_dir = models_dir
        self._config = config
        self._loading = loading  # held while a model is read: one at a time
        self._changed = changed
        self._engine: EngineClient | None = None
        self._start: Start | None = None
        self._task = asyncio.create_task(self._run())

    @property
    def engine(self) -> EngineClient:
        """Where calls go. Raises Unavailable while there is no engine, saying why, NotFound once it is unloaded."""
        if self._engine is not None:
            return self._engine
        if self.state == "UNLOADING":
            raise NotFound(f"{self.name} was just unloaded here; ask the registry where it is served")
        if self.state == "FAILED":
            raise Unavailable(f"{self.name} could not be loaded: {self.error}")
        raise Unavailable(f"{self.name} is being loaded; try again in a moment")

    def status(self) -> VersionStatus:
        engine = self._engine
        return VersionStatus(
            self.name,
            self.state,
            self.error,
            self.max_sequence_tokens,
            engine.num_calls if engine else 0,
            engine.stats if engine else Stats(),
        )

    async def unload(self) -> None:
        """Serve on while callers learn of it, then take no more calls, finish those under way, end the engine."""
        self._set("UNLOADING")
        if self._engine is not None:
            await asyncio.sleep(self._config.unload_grace_s)
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.drained()
        await self.close()

    async def close(self) -> None:
        """End the engine at once."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """Load and serve; after a failure again, later each time."""
        failures = 0
        while True:
            started = time.monotonic()
            try:
                await self._serve()
                if time.monotonic() - started > STABLE_S:
                    failures = 0
                delay_s = 0.0 if failures == 0 else self._retry_delay_s(failures)
            except (EngineFailed, DomainError, OSError, ValueError) as error:
                log.error("%s could not be loaded: %s", self.name, error)
                self._set("FAILED", str(error))
                delay_s = self._retry_delay_s(failures)
            failures += 1
            await asyncio.sleep(delay_s)
            self._set("LOADING")

    def _retry_delay_s(self, failures: int) -> float:
        return float(min(self._config.retry_s * 2 ** min(failures, 20), self._config.max_retry_s))

    async def _serve(self) -> None:
        """Load the version, and serve until its engine dies."""
        engine = EngineClient(self.name)
        async with self._loading:
            if self._start is None:  # files are verified once, not again after a crash
                self._start = await asyncio.to_thread(self._fetch)
            ready = await engine.start(self._start)
        self._engine = engine
        self._announce(ready)
        try:
            code = await engine.exited()
            log.error("the engine of %s died with exit code %s", self.name, code)
            self.restarting = True
            self._set("LOADING")
        finally:
            self._engine = None
            await engine.close()

    def _announce(self, ready: Ready) -> None:
        assert self._start is not None
        log.info("%s is ready: %s, %s, %d cache blocks", self.name, ready.device, ready.dtype, ready.num_blocks)
        self.max_sequence_tokens = ready.max_sequence_tokens
        self.num_token_ids = self._start.num_token_ids
        self.device = ready.device
        self.restarting = False
        self._set("READY")

    def _fetch(self) -> Start:
        """Bring the version's files here; blocking."""
        folder = self._models_dir / self.name.replace("/", "--")
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._store.materialize(self._assigned.files, folder)
        num_token_ids = count_token_ids(self._store.read_bytes(self._assigned.tokenizer_digest))
        return Start(str(folder), num_token_ids, self._config.engine)

    def _set(self, state: str, error: str = "") -> None:
        if self.state != "UNLOADING":  # nothing leads back from there
            self.state, self.error = state, error
        self._changed()


def count_token_ids(tokenizer_json: bytes) -> int:
    """The highest id of a tokenizer.json, plus one. Raises ValueError for what is none."""
    try:
        content = json.loads(tokenizer_json)
        ids: list[int] = [
            *content["model"]["vocab"].values(),
            *(token["id"] for token in content.get("added_tokens", ())),
        ]
        return max(ids) + 1
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the version's tokenizer artifact is no tokenizer.json with a vocabulary: {error!r}"
        ) from error
