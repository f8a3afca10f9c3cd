"""A job that imports a model from the hub: what it asks for, and the version that it ends with."""

import pytest

from services.common.errors import AlreadyExists, DomainError, InvalidArgument
from services.registry.checkpoints import File
from services.registry.job_specs import ImportModelSpec, spec_from_row
from services.registry.jobs import NewJob
from services.registry.leases import Succeeded
from services.registry.tables import RUNNING, SUCCEEDED, Job
from tests.support.projects import calling_for
from tests.support.registry_data import store_checkpoint

SPEC = ImportModelSpec(model="lab/tiny", licence="mit")


async def submit(registry, spec: ImportModelSpec = SPEC, **more) -> Job:
    return await registry.jobs.create(NewJob(spec=spec, created_by="ada", **more))


async def finish(registry, job: Job, *, tokenizer: bool = True) -> str:
    """The tokenizer's digest."""
    stored = store_checkpoint(registry.artifacts)
    also = (File(path="tokenizer.json", digest=stored.tokenizer_digest),) if tokenizer else ()
    await registry.leases.acquire(job.id, "t")
    await registry.leases.finish(job.id, 1, Succeeded((*stored.files, *also)))
    return stored.tokenizer_digest


async def test_it_ends_with_a_version_that_was_imported_and_is_deployed(registry):
    job = await submit(registry, deploy_alias="bud")
    tokenizer = await finish(registry, job)
    job = await registry.jobs.get(job.id)
    assert (job.state, job.model_version) == (SUCCEEDED, "lab/tiny@1")
    version = await registry.aliases.resolve("bud")
    assert (version.name, version.source, version.job_id) == ("lab/tiny@1", "import", job.id)
    assert (version.licence, version.tokenizer_digest, version.created_by) == ("mit", tokenizer, "ada")
    assert "tokenizer.json" not in {file["path"] for file in version.files}


async def test_the_licence_is_the_models_where_none_is_said(registry):
    await registry.add_version("seedling")
    licence = (await registry.models.get("seedling")).licence
    job = await submit(registry, ImportModelSpec(model="seedling"))
    assert spec_from_row(job.spec).licence == licence


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ImportModelSpec(model=""), "model"),
        (ImportModelSpec(model="a/../b", licence="mit"), "a/../b"),
        (ImportModelSpec(model="https://example.org/a", licence="mit"), "https://example.org/a"),
        (ImportModelSpec(model="lab/tiny"), "licence"),
        (ImportModelSpec(model="lab/tiny", licence="nobody's"), "licence"),
    ],
)
async def test_one_that_cannot_be_registered_is_refused_by_parameter(registry, spec, message):
    with pytest.raises(DomainError, match=message):
        await submit(registry, spec)


async def test_an_import_without_a_tokenizer_does_not_end_the_job(registry):
    job = await submit(registry)
    with pytest.raises(InvalidArgument, match=r"an import brings tokenizer\.json, and there is none"):
        await finish(registry, job, tokenizer=False)
    assert (await registry.jobs.get(job.id)).state == RUNNING


async def test_what_a_project_imports_is_its_own(registry):
    with calling_for("lab"):
        job = await submit(registry)
    await finish(registry, job)
    with calling_for("lab"):
        assert (await registry.models.get("lab/tiny")).project == "lab"
    with calling_for("other"), pytest.raises(AlreadyExists, match="'lab/tiny' is taken"):
        await submit(registry)
