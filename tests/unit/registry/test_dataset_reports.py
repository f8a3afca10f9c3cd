"""A job that reports on a dataset: checked when it is made, and its report kept with the dataset's version."""

import json
from dataclasses import replace

import pytest

from services.common.errors import Aborted, DomainError, InvalidArgument
from services.registry import dataset_reports
from services.registry.checkpoints import File
from services.registry.job_specs import ValidateDatasetSpec, spec_from_row, spec_to_row
from services.registry.jobs import NewJob
from services.registry.leases import Failed, Stopped, Succeeded
from services.registry.references import read_references
from services.registry.tables import FAILED, PENDING, SUCCEEDED, Job
from services.trainer.dataset_report import report as trainers
from services.trainer.dataset_report.__main__ import REPORT_FILE
from tests.support.registry_data import store_checkpoint, text_rows

REPORT = json.dumps({"format": 1, "rows": 3}).encode()


@pytest.fixture
async def spec(registry) -> ValidateDatasetSpec:
    await registry.add_version()
    await registry.add_dataset()
    await registry.datasets.create("held", "TEXT", registry.artifacts.write_bytes(text_rows(9)))
    return ValidateDatasetSpec(dataset="udhr", base="seedling", held_out=["held"])


async def submit(registry, spec: ValidateDatasetSpec, **more) -> Job:
    return await registry.jobs.create(NewJob(spec=spec, created_by="ada", **more))


def report_file(registry, content: bytes = REPORT, path: str = "report.json") -> Succeeded:
    return Succeeded((File(path=path, digest=registry.artifacts.write_bytes(content)),))


async def test_a_job_is_fixed_to_versions_a_tokenizer_and_a_length(registry, spec):
    job = await submit(registry, spec)
    version = await registry.aliases.resolve("seedling")
    assert spec_from_row(job.spec) == ValidateDatasetSpec(
        dataset="udhr@1",
        base="seedling@1",
        tokenizer_digest=version.tokenizer_digest,
        sequence_length=512,
        held_out=["held@1"],
    )
    assert (job.state, job.estimate) == (PENDING, None)
    acquired = await registry.leases.acquire(job.id, "t")
    assert [row.name for row in acquired.datasets] == ["udhr@1", "held@1"]
    assert spec_from_row(spec_to_row(spec)) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": ""}, "dataset is empty; name the dataset to look through"),
        ({"dataset": "gone"}, "no dataset 'gone'"),
        ({"held_out": ["gone@7"]}, "no dataset 'gone@7'"),
        ({"held_out": ["udhr"]}, "datasets udhr, udhr name one twice"),
        ({"held_out": ["copy"]}, "held_out: 'copy@1' has the rows of 'udhr@1' itself; name another"),
        ({"dataset": "blend"}, "dataset 'blend@1' is a BLEND, which has no rows; name the datasets that it is made of"),
        ({"base": "seedlin"}, "no model, version or alias 'seedlin'"),
        ({"base": ""}, "neither base nor tokenizer_digest is set"),
        ({"base": "", "tokenizer_digest": "sha256:1"}, "is not 'sha256:' and 64 lower-case hex digits"),
        ({"base": "", "tokenizer_digest": "sha256:" + "0" * 64}, "no artifact sha256:0"),
        ({"tokenizer_digest": "sha256:" + "0" * 64}, "is not that of base seedling@1; leave one of them out"),
        ({"sequence_length": 15}, r"sequence_length=15 is out of range; choose a value in \[16, 65536\]"),
    ],
)
async def test_a_report_that_cannot_be_made_is_refused_by_parameter(registry, spec, changes, message):
    await registry.add_dataset("blend", "BLEND")
    await registry.add_dataset("copy")
    with pytest.raises(DomainError, match=message):
        await submit(registry, replace(spec, **changes))
    with pytest.raises(InvalidArgument, match="deploy_alias='bud': a report is no version"):
        await submit(registry, spec, deploy_alias="bud")


async def test_the_same_key_gives_the_same_job(registry, spec):
    first, second = [await submit(registry, spec, idempotency_key="k") for _ in range(2)]
    assert first.id == second.id


async def test_the_report_is_kept_with_the_version_and_a_newer_one_takes_its_place(registry, spec):
    jobs = [await submit(registry, spec) for _ in range(2)]
    await registry.datasets.create("udhr", "TEXT", registry.artifacts.write_bytes(text_rows(4)))
    digests = []
    for number, job in enumerate(jobs):
        await registry.leases.acquire(job.id, "t")
        succeeded = report_file(registry, json.dumps({"format": 1, "rows": number}).encode())
        done = await registry.leases.finish(job.id, 1, succeeded)
        assert (done.state, done.model_version) == (SUCCEEDED, None)
        assert (await registry.leases.finish(job.id, 1, succeeded)).state == SUCCEEDED
        digests.append(succeeded.files[0].digest)
        found = await registry.datasets.get("udhr@1")
        assert (found.report_digest, found.report_job_id) == (digests[-1], job.id)
    assert (await registry.datasets.get("udhr")).report_digest is None  # of another version
    async with registry.database.read() as session:
        needed = await read_references(session)
    assert (needed[digests[1]], digests[0] in needed) == (["report on dataset udhr@1"], False)


@pytest.mark.parametrize(
    ("content", "path", "message"),
    [
        (REPORT, "model.safetensors", "a validation ends with one file, report.json"),
        (b"{", "report.json", "no report of format 1"),
        (b'{"format": 2}', "report.json", "no report of format 1"),
        (b"[" * 100_000, "report.json", "no report of format 1"),
        (b"[1]", "report.json", "no report of format 1"),
    ],
)
async def test_what_is_no_report_changes_nothing_and_the_job_goes_on(registry, spec, content, path, message):
    job = await submit(registry, spec)
    await registry.leases.acquire(job.id, "t")
    with pytest.raises(InvalidArgument, match=message):
        await registry.leases.finish(job.id, 1, report_file(registry, content, path))
    assert (await registry.datasets.get("udhr")).report_digest is None
    assert (await registry.leases.finish(job.id, 1, report_file(registry))).state == SUCCEEDED


async def test_a_checkpoint_is_no_report_and_a_report_no_checkpoint(registry, spec):
    job = await submit(registry, spec)
    await registry.leases.acquire(job.id, "t")
    with pytest.raises(InvalidArgument, match="one file"):
        await registry.leases.finish(job.id, 1, Succeeded(store_checkpoint(registry.artifacts).files))
    training = await registry.submit()
    await registry.leases.acquire(training.id, "t")
    with pytest.raises(DomainError, match="config"):
        await registry.leases.finish(training.id, 1, report_file(registry))


async def test_a_report_job_fails_is_cancelled_and_loses_its_lease_as_any(registry, spec):
    failed, cancelled, lost = [await submit(registry, spec) for _ in range(3)]
    for job in (failed, cancelled, lost):
        await registry.leases.acquire(job.id, "t")
    assert (await registry.leases.finish(failed.id, 1, Failed("BAD_TOKENIZER", "why"))).state == FAILED
    await registry.jobs.cancel(cancelled.id)
    assert (await registry.leases.finish(cancelled.id, 1, Stopped())).state == "CANCELLED"
    registry.clock.advance(16)
    await registry.leases.acquire(lost.id, "other")
    with pytest.raises(Aborted):
        await registry.leases.finish(lost.id, 1, report_file(registry))
    assert (await registry.leases.finish(lost.id, 2, report_file(registry))).state == SUCCEEDED


def test_trainer_and_registry_mean_the_same_report():
    assert (trainers.FORMAT, REPORT_FILE) == (dataset_reports.FORMAT, dataset_reports.REPORT_FILE)
