"""A job that trains a tokenizer: checked when it is made, and the tokenizer kept as what the job has made."""

import json
from dataclasses import replace

import pytest
from sqlalchemy import select

from services.common.auth import Principal
from services.common.errors import DomainError, InvalidArgument
from services.registry import tokenizer_training
from services.registry.checkpoints import File
from services.registry.job_specs import TrainTokenizerSpec, spec_from_row
from services.registry.jobs import NewJob
from services.registry.leases import Succeeded
from services.registry.projects.artifacts import may_read
from services.registry.references import read_references
from services.registry.tables import RUNNING, SUCCEEDED, Job, WebhookDelivery
from services.registry.webhooks.addresses import PUBLIC_ONLY
from services.registry.webhooks.outbox import write_deliveries
from services.registry.webhooks.service import Webhooks
from services.trainer.train_tokenizer import TOKENIZER_FILE
from tests.support.projects import calling_for
from tests.support.registry_data import text_rows
from tests.support.tokenizers import small_tokenizer_json

SPEC = TrainTokenizerSpec(datasets=["udhr"], vocab_size=600)


async def submit(registry, spec: TrainTokenizerSpec = SPEC, **more) -> Job:
    return await registry.jobs.create(NewJob(spec=spec, created_by="ada", **more))


async def finish(registry, job: Job, content: str, path: str = "tokenizer.json") -> str:
    """Its digest."""
    digest = registry.artifacts.write_bytes(content.encode())
    await registry.leases.acquire(job.id, "t")
    await registry.leases.finish(job.id, 1, Succeeded((File(path=path, digest=digest),)))
    return digest


async def test_a_job_is_fixed_to_versions_and_makes_a_tokenizer_that_is_kept(registry, database):
    await registry.add_dataset()
    job = await submit(registry)
    assert spec_from_row(job.spec) == replace(SPEC, datasets=["udhr@1"])
    acquired = await registry.leases.acquire(job.id, "t")
    assert [row.name for row in acquired.datasets] == ["udhr@1"]
    await registry.leases.release(job.id, 1, "to be tried again")
    digest = registry.artifacts.write_bytes(small_tokenizer_json().encode())
    await registry.leases.acquire(job.id, "t")
    await registry.leases.finish(job.id, 2, Succeeded((File(path="tokenizer.json", digest=digest),)))
    job = await registry.jobs.get(job.id)
    assert (job.state, job.made, job.model_version) == (SUCCEEDED, {"tokenizer_digest": digest}, None)
    async with database.read() as session:
        assert (await read_references(session))[digest] == [f"job {job.id}"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": []}, "datasets is empty; name at least one dataset"),
        ({"datasets": ["gone"]}, "no dataset 'gone'"),
        ({"datasets": ["udhr", "udhr@1"]}, "name one twice"),
        ({"datasets": ["blend"]}, "dataset 'blend@1' is BLEND; name datasets of TEXT or MULTITASK rows"),
        ({"vocab_size": 511}, r"vocab_size=511 is out of range; choose a value in \[512, 1000000\]"),
        ({"min_frequency": 1_000_001}, r"min_frequency=1000001 is out of range"),
    ],
)
async def test_one_that_cannot_be_trained_is_refused_by_parameter(registry, changes, message):
    await registry.add_dataset()
    await registry.add_dataset("blend", "BLEND")
    with pytest.raises(DomainError, match=message):
        await submit(registry, replace(SPEC, **changes))
    with pytest.raises(InvalidArgument, match="deploy_alias='bud': this job makes no version"):
        await submit(registry, deploy_alias="bud")


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("vocab.json", small_tokenizer_json(), "ends with one file, tokenizer.json"),
        ("tokenizer.json", json.dumps({"model": {}}), "is no Hugging Face tokenizer.json"),
    ],
)
async def test_what_is_no_tokenizer_does_not_end_the_job(registry, path, content, message):
    await registry.add_dataset()
    job = await submit(registry)
    with pytest.raises(InvalidArgument, match=message):
        await finish(registry, job, content, path)
    assert (await registry.jobs.get(job.id)).state == RUNNING


async def test_whoever_is_told_of_the_end_is_told_the_digest(registry, database):
    await registry.add_dataset()
    ada = Principal("key", "ada", "trainer")
    await Webhooks(database, b"pepper", PUBLIC_ONLY).create(ada, "https://1.1.1.1", ["job.succeeded"])
    digest = await finish(registry, await submit(registry), small_tokenizer_json())
    await write_deliveries(database, registry.clock())
    async with database.read() as session:
        (body,) = await session.scalars(select(WebhookDelivery.body))
    assert json.loads(body)["data"]["tokenizer_digest"] == digest


async def test_a_projects_tokenizer_is_the_projects_to_read(registry, database):
    with calling_for("lab"):
        await registry.datasets.create("ours", "TEXT", registry.artifacts.write_bytes(text_rows(5)))
        job = await submit(registry, replace(SPEC, datasets=["ours"]))
    digest = await finish(registry, job, small_tokenizer_json())
    for project, may in (("lab", True), ("other", False)):
        with calling_for(project):
            async with database.read() as session:
                assert await may_read(session, [digest]) is may


def test_both_sides_call_the_file_the_same():
    assert tokenizer_training.TOKENIZER_FILE == TOKENIZER_FILE
