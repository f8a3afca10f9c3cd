"""The playground's pages over a real registry (in this process) and a gateway that says what a test wants."""

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from anthesis import Client, Settings
from anthesis.channel import open_channel
from anthesis.v1 import job_pb2, registry_pb2
from anthesis.v1.job_pb2_grpc import JobServiceStub
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub
from streamlit.testing.v1 import AppTest

from services.common.artifacts import ArtifactStore
from services.common.settings import ROOT, Platform
from services.registry.bootstrap import bootstrap
from tests.support.registry_data import multitask_rows, store_checkpoint
from tests.support.registry_server import RunningRegistry, platform_env, running_registry, test_platform
from tests.support.scripted_gateway import ScriptedGateway, running_scripted_gateway
from ui.platform import connect


@dataclass(kw_only=True)
class Stage:
    """A registry without anything in it but the catalogue, and hands for what workers do."""

    platform: Platform
    gateway: ScriptedGateway
    client: Client
    workers: RegistryServiceStub
    trainer: JobServiceStub

    def add_version(self, model: str, parent: str = "", licence: str = "apache-2.0") -> str:
        """Register a tiny checkpoint; return its version's name."""
        known = {found.name for found in self.client.models.list()}
        if model not in known:
            self.client.models.create(registry_pb2.Model(name=model, licence=licence, languages=["fr", "ar", "Python"]))
        store = ArtifactStore(self.platform.artifacts_url, self.platform.data_dir / "cache" / "test")
        checkpoint = store_checkpoint(store)
        files = [registry_pb2.ModelFile(path=file.path, digest=file.digest) for file in checkpoint.files]
        version = registry_pb2.ModelVersion(
            model=model,
            licence=licence,
            tokenizer_digest=checkpoint.tokenizer_digest,
            files=files,
            parent=parent,
            source="import",
        )
        return self.client.models.create_version(version).name

    def serve(self, *versions: str) -> None:
        """A worker says that it has these ready."""
        models = [
            registry_pb2.WorkerModel(version=version, state="READY", max_sequence_tokens=2048) for version in versions
        ]
        self.workers.HeartbeatWorker(
            registry_pb2.HeartbeatWorkerRequest(worker_id="w", address="127.0.0.1:1", device="cpu", models=models)
        )

    def deploy(self, alias: str, version: str) -> None:
        self.client.aliases.set(alias, version)
        self.client.deployments.create(alias)

    def add_dataset(self, name: str) -> None:
        digest = self.client.artifacts.upload_bytes(multitask_rows()).digest
        self.client.datasets.create(name, digest, registry_pb2.DATASET_FORMAT_MULTITASK)

    def report(self, job_id: str, *losses: float, total_steps: int = 10) -> int:
        """A trainer takes the job and has done as many steps; returns its fencing token."""
        token = self.trainer.AcquireLease(job_pb2.AcquireLeaseRequest(job_id=job_id, worker_id="t")).lease.fencing_token
        self.renew(job_id, token, *losses, total_steps=total_steps)
        return token

    def renew(self, job_id: str, token: int, *losses: float, first_step: int = 1, total_steps: int = 10) -> None:
        progress = [
            job_pb2.TrainingProgress(
                step=step,
                total_steps=total_steps,
                loss=loss,
                learning_rate=1e-4,
                grad_norm=0.5,
                tokens_per_second=900.0,
                tokens_seen=step * 512,
                seconds_left=75.0,
                samples_seen=step * 2,
                model_flops_per_second=3e9,
                hardware_flops_per_second=4e9,
                validation=[job_pb2.ValidationLoss(dataset="held-out", language="fr", bits_per_byte=loss)],
                validation_step=step,
            )
            for step, loss in enumerate(losses, first_step)
        ]
        self.trainer.RenewLease(job_pb2.RenewLeaseRequest(job_id=job_id, fencing_token=token, progress=progress))

    def open(self, page: str = "playground", **query: str) -> AppTest:
        """The page as a user sees it who opens it."""
        app = AppTest.from_file(str(ROOT / "ui" / "app.py"), default_timeout=30)
        app.run()
        app.switch_page(f"views/{page}.py")
        for key, value in query.items():
            app.query_params[key] = value
        return app.run()


@contextmanager
def registry_in_a_thread(data_dir: Path, gateway_address: str) -> Iterator[RunningRegistry]:
    """`running_registry` for code without an event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    running = running_registry(data_dir=data_dir, worker_lease_s=300.0)
    try:
        registry = asyncio.run_coroutine_threadsafe(running.__aenter__(), loop).result(60)
        registry.platform = replace(registry.platform, gateway_address=gateway_address)
        yield registry
        asyncio.run_coroutine_threadsafe(running.__aexit__(None, None, None), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="session")
def bootstrapped() -> Iterator[Path]:
    """A data folder as a first start leaves it; copying it is faster than making another."""
    with tempfile.TemporaryDirectory(prefix="an-") as folder:
        bootstrap(test_platform(Path(folder)))
        yield Path(folder)


@pytest.fixture
def stage(bootstrapped: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with (
        tempfile.TemporaryDirectory(prefix="an-", ignore_cleanup_errors=True) as folder,
        running_scripted_gateway() as (gateway, gateway_address),
    ):
        shutil.copytree(bootstrapped, folder, dirs_exist_ok=True)
        with registry_in_a_thread(Path(folder), gateway_address) as registry:
            yield from _stage(registry, gateway, monkeypatch)


def _stage(registry: RunningRegistry, gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    for name in ("REGISTRY_ADDRESS", "GATEWAY_ADDRESS", "DATA"):
        monkeypatch.setenv(f"ANTHESIS_{name}", platform_env(registry.platform)[f"ANTHESIS_{name}"])
    monkeypatch.delenv("ANTHESIS_API_KEY", raising=False)
    connect.clear()
    with (
        Client(Settings.from_env()) as client,
        open_channel(registry.address, registry.keys["inference"]) as as_worker,
        open_channel(registry.address, registry.keys["trainer"]) as as_trainer,
    ):
        yield Stage(
            platform=registry.platform,
            gateway=gateway,
            client=client,
            workers=RegistryServiceStub(as_worker),
            trainer=JobServiceStub(as_trainer),
        )
    connect.clear()


def html(app: AppTest) -> str:
    """Everything the page drew with st.html."""
    drawn = (element.proto.body for element in app.get("html"))
    return "\n".join(body for body in drawn if not body.startswith("<style>"))


def words(app: AppTest) -> str:
    """All that stands on the page."""
    return "\n".join(
        [
            html(app),
            *(
                str(e.value)
                for kind in (app.info, app.error, app.warning, app.markdown, app.code, app.caption)
                for e in kind
            ),
        ]
    )
