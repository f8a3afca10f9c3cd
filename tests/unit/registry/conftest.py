"""Every test here that asks for a database runs on SQLite and, where it is installed, on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.common.artifacts import ArtifactStore
from services.registry.alias_changes import NewChange
from services.registry.aliases import Aliases
from services.registry.collection import Collector
from services.registry.database import Database
from services.registry.datasets import Datasets
from services.registry.deployments import Deployments
from services.registry.files import Files
from services.registry.job_control import JobControl
from services.registry.job_logs import JobLogs
from services.registry.job_specs import FineTuneSpec, PretrainSpec, TrainOptions
from services.registry.jobs import Jobs, NewJob
from services.registry.leases import Leases
from services.registry.licences.service import Licences
from services.registry.models import Models
from services.registry.tables import Alias, Job, ModelVersion
from services.registry.uploads import Uploads
from services.registry.verification import Verification
from services.registry.versions import NewVersion, Versions
from tests.support.registry_data import (
    DATABASES,
    ManualClock,
    fresh_database,
    multitask_rows,
    store_checkpoint,
    text_rows,
)


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=DATABASES)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    # In a thread: alembic runs an event loop of its own.
    database = Database(await asyncio.to_thread(fresh_database, request.param, tmp_path))
    yield database
    await database.close()


@dataclass(kw_only=True)
class Registry:
    """The use cases over one database, with a clock turned by hand and shorthands for what most tests need."""

    database: Database
    artifacts: ArtifactStore
    clock: ManualClock

    def __post_init__(self) -> None:
        self.models = Models(self.database, self.clock)
        self.versions = Versions(self.database, self.artifacts, self.clock)
        self.aliases = Aliases(self.database, self.clock)
        self.licences = Licences(self.database, self.clock)
        self.datasets = Datasets(self.database, self.artifacts, self.clock)
        self.files = Files(self.database, self.artifacts, self.clock)
        self.deployments = Deployments(self.database, worker_lease_s=10, clock=self.clock)
        self.jobs = Jobs(self.database, self.artifacts, self.clock, watch_poll_s=0.01)
        self.control = JobControl(self.database, self.clock)
        self.logs = JobLogs(self.database)
        self.leases = Leases(self.database, self.artifacts, ttl_s=15, clock=self.clock)
        self.uploads = Uploads(self.database, self.artifacts, clock=self.clock)
        self.verification = Verification(self.database, self.artifacts)
        self.collector = Collector(self.database, self.artifacts, self.uploads, self.clock)

    async def set_alias(self, name: str, version: str, **changes) -> Alias:
        return await self.aliases.set(name, version, NewChange(**({"principal": "ada"} | changes)))

    async def add_version(self, model: str = "seedling", licence: str = "apache-2.0", **changes) -> ModelVersion:
        stored = store_checkpoint(self.artifacts)
        values = {"files": stored.files, "tokenizer_digest": stored.tokenizer_digest, "licence": licence} | changes
        return await self.versions.create(NewVersion(model=model, **values))

    async def add_dataset(self, name: str = "udhr", dataset_format: str = "TEXT") -> None:
        content = {
            "TEXT": text_rows(),
            "MULTITASK": multitask_rows(),
            "FIELDS": b'{"a": "x", "b": "y", "language": "fr"}\n',
            "BLEND": b"corpora: {a: {files: [a]}}",
            "MIXTURE": b"tasks: {fields: {templates: [{jinja: '{{a}} ||| {{b}}'}]}, tasks: {max_examples: 1}}",
        }
        await self.datasets.create(name, dataset_format, self.artifacts.write_bytes(content[dataset_format]))

    async def pretrain_spec(self, **changes) -> PretrainSpec:
        await self.add_dataset()
        values = {
            "output_model": "sprout",
            "tokenizer_digest": store_checkpoint(self.artifacts).tokenizer_digest,
            "datasets": ["udhr"],
            "config": '{"model_type": "bloom", "hidden_size": 12, "n_layer": 2, "n_head": 3, "vocab_size": 300}',
            "options": TrainOptions(steps=10),
        }
        return PretrainSpec(**(values | changes))

    async def fine_tune_spec(self, **changes) -> FineTuneSpec:
        """On the base `seedling`, which is made."""
        await self.add_version()
        await self.add_dataset("tasks", "MULTITASK")
        values = {
            "output_model": "sprout",
            "base": "seedling",
            "datasets": ["tasks"],
            "options": TrainOptions(steps=10),
        }
        return FineTuneSpec(**(values | changes))

    async def submit(self, **changes) -> Job:
        spec = changes.pop("spec", None) or await self.pretrain_spec()
        return await self.jobs.create(NewJob(spec=spec, created_by="ada", **changes))


@pytest.fixture
def registry(database: Database, artifacts: ArtifactStore, clock: ManualClock) -> Registry:
    return Registry(database=database, artifacts=artifacts, clock=clock)
