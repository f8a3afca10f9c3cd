"""Projects in tests: calls made for one, and one that has something of every kind."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from anthesis import AsyncClient, Settings
from anthesis.v1 import job_pb2
from anthesis.v1 import registry_pb2 as pb

from bloom.config import BloomConfig
from services.common.auth import Call, Principal, current_call, set_call
from services.registry.config import read_pepper
from services.registry.database import utc_now
from services.registry.keys import Keys
from services.registry.projects.service import Projects
from tests.support.registry_data import store_checkpoint, text_rows
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


async def fill_project(registry: RunningRegistry, settings: Settings, project: str) -> Belongings:
    """Make something of every kind with a key of the project's admin, over the RPCs; names begin with the project's."""
    stored = store_checkpoint(registry.artifacts, SHAPE, tokenizer=small_tokenizer_json(512).encode())
    async with AsyncClient(settings) as client:
        rows = await client.artifacts.upload_bytes(text_rows(5) + f'{{"text": "{project}"}}\n'.encode())
        await client.datasets.create(f"{project}-rows", rows.digest, pb.DATASET_FORMAT_TEXT)
        for digest in (stored.tokenizer_digest, *(file.digest for file in stored.files)):
            await client.artifacts.upload_bytes(registry.artifacts.read_bytes(digest))
        await client.models.create(pb.Model(name=f"{project}-model", licence="apache-2.0"))
        version = await client.models.create_version(
            pb.ModelVersion(
                model=f"{project}-model",
                tokenizer_digest=stored.tokenizer_digest,
                files=[pb.ModelFile(path=file.path, digest=file.digest) for file in stored.files],
            )
        )
        await client.aliases.set(f"{project}-alias", version.name)
        await client.deployments.create(f"{project}-alias", name=f"{project}-deployment")
        spec = job_pb2.FineTuneSpec(
            output_model=f"{project}-tuned",
            base=version.name,
            datasets=[f"{project}-rows"],
            options=job_pb2.TrainOptions(steps=1),
        )
        job = await client.jobs.create(spec)
        made = await client.keys.create("spare", pb.ROLE_VIEWER, expire_time=utc_now() + timedelta(days=1))
    return Belongings(
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
        key=made.key.id,
    )
