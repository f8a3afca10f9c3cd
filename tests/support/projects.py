"""Projects in tests: calls made for one, and one that has something of every kind."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import httpx
from anthesis import AsyncClient, Settings
from anthesis.channel import open_aio_channel
from anthesis.v1 import evaluation_pb2, job_pb2
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub

from bloom.config import BloomConfig
from services.common.auth import Call, Principal, current_call, set_call
from services.registry.config import read_pepper
from services.registry.database import utc_now
from services.registry.keys import Keys
from services.registry.projects.service import Projects
from services.registry.tables import Webhook, WebhookDelivery
from tests.support.registry_data import multitask_rows, store_checkpoint, text_rows
from tests.support.registry_server import RunningRegistry
from tests.support.tokenizers import small_tokenizer_json

SHAPE = BloomConfig(vocab_size=600, hidden_size=12, n_layer=2, n_head=3)


@contextmanager
def calling_for(project: str, role: str = "trainer", name: str = "ada") -> Iterator[Principal]:
    """Within, calls are those of a key of `project`; "": of the platform's."""
    before = current_call()
    principal = Principal(f"key-{project}", f"{project}/{name}" if project else name, role, project=project)
    set_call(Call(principal, "RegistryService.Test"))
    try:
        yield principal
    finally:
        set_call(before)


async def make_project(registry: RunningRegistry, name: str) -> dict[str, str]:
    """Make it, with a key of each role: role -> secret."""
    await Projects(registry.database).create(name)
    keys = Keys(registry.database, read_pepper(registry.data_dir, {}))
    roles = ("viewer", "user", "trainer", "admin")
    return {role: (await keys.create(f"the-{role}", role, project=name))[1] for role in roles}


@dataclass(frozen=True, kw_only=True)
class Belongings:
    """What a project has: its resources' names."""

    project: str
    model: str
    version: str
    alias: str
    dataset: str
    dataset_digest: str
    weights_digest: str
    tokenizer_digest: str
    deployment: str
    job: str
    key: str
    upload: str
    file: str
    spare_file: str
    fine_tuning: str
    webhook: str
    delivery: str
    suite: str
    benchmark: str
    spare_version: str
    empty_model: str


async def _fine_tune(http_url: str, settings: Settings, version: str) -> tuple[str, str, str]:
    """Two files and a job, as an OpenAI client makes them: their ids."""
    headers = {"authorization": f"Bearer {settings.api_key}"}
    async with httpx.AsyncClient(base_url=http_url, headers=headers, timeout=30) as http:
        form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", multitask_rows(20))}}
        file, spare = [(await http.post("/v1/files", **form)).json()["id"] for _ in range(2)]
        body = {"model": version, "training_file": file, "suffix": "mine"}
        return file, spare, (await http.post("/v1/fine_tuning/jobs", json=body)).json()["id"]


async def begin_upload(registry: RunningRegistry, settings: Settings) -> str:
    """An upload of which nothing is sent: its id."""
    begin = pb.BeginUploadRequest(digest=f"sha256:{'0' * 64}", size_bytes=1)
    async with open_aio_channel(registry.address, settings.api_key) as channel:
        return str((await RegistryServiceStub(channel).BeginUpload(begin)).upload_id)


async def _add_webhook(registry: RunningRegistry, project: str, job_id: str) -> tuple[str, str]:
    """Straight into the tables: the URL of one that is made over the RPC has to be found."""
    now = utc_now()
    times = {"create_time": now, "last_time": now}
    webhook = Webhook(
        id=f"webhook-{project}",
        url="https://example.org",
        event_types=[],
        created_by=f"{project}/the-admin",
        create_time=now,
        project=project,
    )
    delivery = WebhookDelivery(
        id=f"delivery-{project}",
        webhook_id=webhook.id,
        job_id=job_id,
        sequence=1,
        event_type="job.succeeded",
        body="{}",
        state="FAILED",
        **times,
    )
    async with registry.database.write() as session:
        session.add(webhook)
        await session.flush()
        session.add(delivery)
    return webhook.id, delivery.id


async def fill_project(registry: RunningRegistry, settings: Settings, project: str, http_url: str) -> Belongings:
    """Make something of every kind with a key of the project's admin, over the RPCs; names begin with the project's."""
    stored = store_checkpoint(registry.artifacts, SHAPE, tokenizer=small_tokenizer_json(512).encode())
    async with AsyncClient(settings) as client:
        rows = await client.artifacts.upload_bytes(text_rows(5) + f'{{"text": "{project}"}}\n'.encode())
        await client.datasets.create(f"{project}-rows", rows.digest, pb.DATASET_FORMAT_TEXT)
        for digest in (stored.tokenizer_digest, *(file.digest for file in stored.files)):
            await client.artifacts.upload_bytes(registry.artifacts.read_bytes(digest))
        upload = await begin_upload(registry, settings)
        await client.models.create(pb.Model(name=f"{project}-model", licence="apache-2.0"))
        await client.models.create(pb.Model(name=f"{project}-empty", licence="apache-2.0"))
        files = [pb.ModelFile(path=file.path, digest=file.digest) for file in stored.files]
        made = pb.ModelVersion(tokenizer_digest=stored.tokenizer_digest, files=files, licence="apache-2.0")
        made.model = f"{project}-model"
        version = await client.models.create_version(made)
        made.model = f"{project}-spare"
        spare_version = await client.models.create_version(made)
        await client.aliases.set(f"{project}-alias", version.name)
        await client.deployments.create(f"{project}-alias", name=f"{project}-deployment")
        spec = job_pb2.FineTuneSpec(
            output_model=f"{project}-tuned",
            base=version.name,
            datasets=[f"{project}-rows"],
            options=job_pb2.TrainOptions(steps=1),
        )
        job = await client.jobs.create(spec)
        key = await client.keys.create("spare", pb.ROLE_VIEWER, expire_time=utc_now() + timedelta(days=1))
        suite = await client.evaluations.create_suite(f"{project}-suite", [f"{project}-rows"])
        metrics = [evaluation_pb2.Metric(name="accuracy", higher_is_better=True)]
        benchmark = await client.evaluations.create_benchmark(f"{project}-benchmark", task="quiz", metrics=metrics)
        result = evaluation_pb2.EvaluationResult(language="fr", metric="accuracy", value=0.5)
        await client.evaluations.record(version.name, benchmark.name, [result])
        await client.gates.set(f"{project}-alias", suite.name, max_regression_percent=1)
        await client.models.update_card(f"{project}-model", "## Notes\n\nOf the project.\n")
    file, spare, fine_tuning = await _fine_tune(http_url, settings, version.name)
    webhook, delivery = await _add_webhook(registry, project, job.id)
    return Belongings(
        upload=upload,
        file=file,
        spare_file=spare,
        fine_tuning=fine_tuning,
        webhook=webhook,
        delivery=delivery,
        project=project,
        model=f"{project}-model",
        version=version.name,
        alias=f"{project}-alias",
        dataset=f"{project}-rows",
        dataset_digest=rows.digest,
        weights_digest=stored.files[1].digest,
        tokenizer_digest=stored.tokenizer_digest,
        deployment=f"{project}-deployment",
        job=job.id,
        key=key.key.id,
        suite=suite.family,
        benchmark=benchmark.name,
        spare_version=spare_version.name,
        empty_model=f"{project}-empty",
    )
