"""Jobs that measure a version, by themselves or behind a fine-tune."""

from datetime import UTC, datetime, timedelta

import pytest

from services.common.errors import FailedPrecondition, InvalidArgument, NotFound
from services.registry.evaluations.documents import read_measurement
from services.registry.job_specs import EvaluateSpec, spec_from_row, spec_to_row
from services.registry.jobs import NewJob
from services.registry.leases import Measured, Succeeded
from services.registry.licences.builtin import BUILTIN
from services.registry.pages import PageRequest
from services.registry.tables import SUCCEEDED
from tests.support.measuring import texts
from tests.support.registry_data import store_checkpoint

FRENCH, SWAHILI = texts(1.5, 1.7), texts(2.0, 2.2)
NO_MEASUREMENTS = [
    b"",
    b"[]",
    b"{}",
    b'{"fr": []}',
    b'{"fr": [[1, 0]]}',
    b'{"fr": [[-1, 5]]}',
    b'{"fr": [[1, 2, 3]]}',
    b'{"fr": [[NaN, 5]]}',
    b'{"fr": [[1, 2], [3]]}',
    b'{"fr": 1}',
    b'{"fr": [["a", "b"]]}',
    b"[" * 100_000,
]


async def evaluations(measuring, name="seedling@1"):
    return (await measuring.evaluations.list_evaluations(name, "", PageRequest())).rows


async def test_a_job_measures_a_version_and_its_result_has_n_and_a_standard_error(measuring):
    job = await measuring.measure("seedling@1", fr=FRENCH, sw=SWAHILI)
    assert (job.state, job.model_version) == (SUCCEEDED, None)
    [found] = await evaluations(measuring)
    assert (found.evaluation.source, found.evaluation.job_id, found.evaluation.created_by) == ("JOB", job.id, "ada")
    french, swahili = found.results
    assert (french.language, french.metric, french.n) == ("fr", "bits_per_byte", 2)
    assert french.value == pytest.approx(1.6)
    assert french.standard_error == pytest.approx(0.1)
    assert swahili.value == pytest.approx(2.1)


async def test_names_are_fixed_when_the_job_is_created_and_its_worker_gets_what_it_needs(measuring):
    await measuring.registry.set_alias("flower", "seedling@1")
    job = await measuring.submit("flower", "held-out")
    await measuring.registry.set_alias("flower", "seedling@2")
    await measuring.add_suite(sequence_length=64)
    assert spec_from_row(job.spec) == EvaluateSpec(version="seedling@1", suite="held-out@1")
    acquired = await measuring.registry.leases.acquire(job.id, "w1")
    assert acquired.base is not None
    assert acquired.suite is not None
    assert (acquired.base.name, acquired.suite.name, acquired.datasets) == ("seedling@1", "held-out@1", [])
    assert spec_from_row(spec_to_row(spec_from_row(job.spec))) == spec_from_row(job.spec)


async def test_a_job_that_measures_can_be_cancelled_and_its_key_gives_the_same_job(measuring):
    new = NewJob(spec=EvaluateSpec(version="seedling", suite="held-out"), created_by="ada", idempotency_key="k")
    job = await measuring.registry.jobs.create(new)
    assert (await measuring.registry.jobs.create(new)).id == job.id
    assert (await measuring.registry.jobs.cancel(job.id)).state == "CANCELLED"


async def test_what_cannot_be_measured_is_refused(measuring):
    with pytest.raises(NotFound, match="no suite 'tulips'"):
        await measuring.submit("seedling", "tulips")
    with pytest.raises(NotFound):
        await measuring.submit("tulip")
    spec = EvaluateSpec(version="seedling", suite="held-out")
    with pytest.raises(InvalidArgument, match="deploy_alias='flower': this job makes no version"):
        await measuring.registry.jobs.create(NewJob(spec=spec, created_by="ada", deploy_alias="flower"))


async def test_a_version_under_a_licence_not_accepted_is_not_measured(measuring):
    await measuring.registry.add_version("rail", licence=BUILTIN[1].id)
    with pytest.raises(FailedPrecondition, match=r"`anthesis licences accept bigscience-rail-1\.0`"):
        await measuring.submit("rail")


async def test_a_version_is_not_measured_by_what_it_or_its_base_has_learnt(measuring):
    await measuring.add_rows("same-rows")
    await measuring.registry.add_version("learnt", datasets=["same-rows"])
    await measuring.registry.add_version("child", parent="learnt@1")
    for name in ("learnt", "child"):
        with pytest.raises(FailedPrecondition, match="learnt@1 is trained on 'same-rows@1', which has the same rows"):
            await measuring.submit(name)


async def test_a_fine_tune_is_measured_before_its_alias_moves(measuring):
    spec = await measuring.registry.fine_tune_spec(evaluate_with="held-out")
    job = await measuring.registry.submit(spec=spec, deploy_alias="flower")
    assert spec_from_row(job.spec).evaluate_with == "held-out@1"
    acquired = await measuring.registry.leases.acquire(job.id, "w1")
    assert acquired.suite is not None
    files = store_checkpoint(measuring.registry.artifacts).files
    documents = measuring.documents(fr=FRENCH)
    done = await measuring.registry.leases.finish(job.id, 1, Succeeded(files, documents))
    assert (done.state, done.model_version) == (SUCCEEDED, "sprout@1")
    [found] = await evaluations(measuring, "sprout")
    assert (found.evaluation.version, found.evaluation.suite) == ("sprout@1", "held-out@1")


async def test_a_fine_tune_that_could_not_be_measured_has_its_version_all_the_same(measuring):
    job = await measuring.registry.submit(spec=await measuring.registry.fine_tune_spec(evaluate_with="held-out"))
    await measuring.registry.leases.acquire(job.id, "w1")
    done = await measuring.registry.leases.finish(
        job.id, 1, Succeeded(store_checkpoint(measuring.registry.artifacts).files)
    )
    assert (done.state, done.model_version) == (SUCCEEDED, "sprout@1")
    assert await evaluations(measuring, "sprout") == []


async def test_a_fine_tune_is_not_measured_by_what_it_trains_on(measuring):
    await measuring.add_rows("same-rows")
    spec = await measuring.registry.fine_tune_spec(evaluate_with="held-out", datasets=["same-rows"])
    with pytest.raises(FailedPrecondition, match="sprout is trained on 'same-rows@1'"):
        await measuring.registry.submit(spec=spec)


async def test_what_is_no_measurement_is_refused_and_the_job_still_runs(measuring):
    job = await measuring.submit("seedling@1")
    await measuring.registry.leases.acquire(job.id, "w1")
    for content in NO_MEASUREMENTS:
        digest = measuring.registry.artifacts.write_bytes(content)
        with pytest.raises(InvalidArgument, match="are not"):
            await measuring.registry.leases.finish(job.id, 1, Measured(digest))
    assert (await measuring.registry.jobs.get(job.id)).state == "RUNNING"
    assert await evaluations(measuring) == []


async def test_an_outcome_of_another_kind_of_job_is_refused(measuring):
    leases, files = measuring.registry.leases, store_checkpoint(measuring.registry.artifacts).files
    measures = await measuring.submit("seedling@1")
    trains = await measuring.registry.submit()
    for job in (measures, trains):
        await leases.acquire(job.id, "w1")
    documents = measuring.documents(fr=FRENCH)
    for job, outcome, message in (
        (measures, Succeeded(files), "end it with measured"),
        (measures, Measured(""), "name its documents"),
        (trains, Measured(documents), "end it with succeeded"),
        (trains, Succeeded(files, documents), "measures by no suite"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            await leases.finish(job.id, 1, outcome)


async def test_what_texts_took_and_a_suites_rows_are_kept_from_collection(measuring):
    await measuring.measure("seedling@1", fr=FRENCH, sw=SWAHILI)
    [found] = await evaluations(measuring)
    suite = await measuring.suites.get("held-out")
    nobodys = measuring.documents(fr=texts(9.0))
    measuring.registry.clock.now = datetime.now(UTC) + timedelta(hours=1)
    garbage = {stored.name for stored in await measuring.registry.collector.find(0)}
    assert nobodys in garbage
    assert not garbage & {found.evaluation.documents, suite.datasets[0]["digest"]}
    kept = read_measurement(measuring.registry.artifacts, found.evaluation.documents)
    assert kept.documents["sw", "bits_per_byte"].tolist() == [list(pair) for pair in SWAHILI]
