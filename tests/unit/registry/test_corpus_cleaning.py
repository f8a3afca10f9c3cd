"""A job that cleans text: checked when it is made, and what is left registered as a dataset's next version."""

from dataclasses import replace

import pytest

from services.common.errors import AlreadyExists, DomainError, InvalidArgument, PermissionDenied
from services.registry import corpus_cleaning
from services.registry.checkpoints import File
from services.registry.job_specs import CleanCorpusSpec, spec_from_row
from services.registry.jobs import NewJob
from services.registry.leases import Succeeded
from services.registry.references import read_references
from services.registry.tables import RUNNING, SUCCEEDED, Job
from services.trainer import clean_corpus as trainers
from tests.support.projects import calling_for
from tests.support.registry_data import text_rows

SPEC = CleanCorpusSpec(datasets=["udhr"], output_dataset="clean", personal_information=["EMAIL"])
ROWS, REPORT = text_rows(4), b'{"languages": {}}'


async def submit(registry, spec: CleanCorpusSpec = SPEC) -> Job:
    return await registry.jobs.create(NewJob(spec=spec, created_by="ada"))


async def finish(registry, job: Job, rows: bytes = ROWS, name: str = "rows.jsonl") -> tuple[str, str]:
    """Digests of rows and report."""
    digests = registry.artifacts.write_bytes(rows), registry.artifacts.write_bytes(REPORT)
    files = tuple(File(path=path, digest=digest) for path, digest in zip((name, "report.json"), digests, strict=True))
    await registry.leases.acquire(job.id, "t")
    await registry.leases.finish(job.id, 1, Succeeded(files))
    return digests


async def test_a_job_is_fixed_to_versions_and_makes_the_next_version_of_its_output(registry, database):
    await registry.add_dataset()
    await registry.datasets.create("clean", "TEXT", registry.artifacts.write_bytes(text_rows(9)))
    job = await submit(registry)
    assert spec_from_row(job.spec) == replace(SPEC, datasets=["udhr@1"])
    digest, report = await finish(registry, job)
    job = await registry.jobs.get(job.id)
    assert (job.state, job.made) == (SUCCEEDED, {"dataset": "clean@2", "report_digest": report})
    made = await registry.datasets.get("clean")
    assert (made.name, made.digest, made.num_rows, made.created_by) == ("clean@2", digest, 4, "ada")
    async with database.read() as session:
        references = await read_references(session)
    assert (references[digest], references[report]) == (["dataset clean@2"], [f"job {job.id}"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": []}, "datasets is empty; name at least one dataset"),
        ({"datasets": ["gone"]}, "no dataset 'gone'"),
        ({"datasets": ["blend"]}, "dataset 'blend@1' is BLEND; cleaning is of TEXT rows, name another"),
        ({"output_dataset": "blend"}, "dataset 'blend@1' is BLEND; cleaning is of TEXT rows, name another"),
        ({"output_dataset": "a/b"}, "dataset"),
        ({"default_language": "x" * 41}, "default_language has 41 characters; give a code such as 'sw'"),
        ({"personal_information": ["X"] * 21}, "personal_information names no kind that there is"),
    ],
)
async def test_one_that_cannot_be_made_is_refused_by_parameter(registry, changes, message):
    await registry.add_dataset()
    await registry.add_dataset("blend", "BLEND")
    with pytest.raises(DomainError, match=message):
        await submit(registry, replace(SPEC, **changes))


@pytest.mark.parametrize(
    ("rows", "name", "message"),
    [
        (ROWS, "text.jsonl", "cleaning ends with rows.jsonl and report.json, not 2 other files"),
        (b'{"text": 3}\n', "rows.jsonl", "rows.jsonl: "),
        (b"", "rows.jsonl", "rows.jsonl: the dataset has no rows"),
    ],
)
async def test_what_are_no_rows_do_not_end_the_job(registry, rows, name, message):
    await registry.add_dataset()
    job = await submit(registry)
    with pytest.raises(InvalidArgument, match=message):
        await finish(registry, job, rows, name)
    assert (await registry.jobs.get(job.id)).state == RUNNING


async def test_what_a_project_cleans_is_its_own_and_another_ones_name_is_refused_at_once(registry):
    await registry.add_dataset()
    with calling_for("lab"):
        job = await submit(registry)
    await finish(registry, job)
    with calling_for("lab"):
        assert (await registry.datasets.get("clean")).project == "lab"
        with pytest.raises(PermissionDenied, match="is not of project 'lab': it is shared"):
            await submit(registry, replace(SPEC, output_dataset="udhr"))
    with calling_for("other"), pytest.raises(AlreadyExists, match="'clean@1' is taken"):
        await submit(registry)


def test_both_sides_call_the_files_the_same():
    ours = corpus_cleaning.ROWS_FILE, corpus_cleaning.REPORT_FILE
    assert ours == (trainers.ROWS_FILE, trainers.REPORT_FILE)
