"""OpenAI's files and fine-tuning jobs: the unchanged `openai` client against a real registry and gateway."""

import asyncio
import csv
from typing import Any

import openai
import pytest
from anthesis.v1 import job_pb2, registry_pb2
from openai.types import FileDeleted, FileObject
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from tests.support.gateway_stack import Stack
from tests.support.openai_fine_tuning import COMPLETION, TALK, jsonl, submit, upload
from tests.support.openai_types import exactly

pytestmark = pytest.mark.asyncio(loop_scope="module")


def step(number: int, loss: float, **more: Any) -> job_pb2.TrainingProgress:
    return job_pb2.TrainingProgress(
        step=number, total_steps=3, loss=loss, learning_rate=1e-4, tokens_seen=10 * number, seconds_left=30, **more
    )


async def report(stack: Stack, job_id: str, token: int, *steps: job_pb2.TrainingProgress, messages=()) -> None:
    await stack.trainer.RenewLease(
        job_pb2.RenewLeaseRequest(job_id=job_id, fencing_token=token, progress=steps, messages=messages)
    )


async def test_a_file_is_uploaded_a_job_followed_to_its_end_and_its_model_used(stack: Stack, ada) -> None:
    training = await upload(ada, TALK, COMPLETION, name="tales.jsonl")
    validation = await upload(ada, {"inputs": "a", "targets": " b"}, name="held out.jsonl")
    job = await submit(ada, training, validation_file=validation.id, suffix="Tales", metadata={"run": "7"}, seed=3)
    assert (job.status, job.model, job.training_file) == ("queued", "lab/seedling", training.id)
    assert (job.validation_file, job.seed, job.metadata) == (validation.id, 3, {"run": "7"})
    assert (job.fine_tuned_model, job.finished_at, job.trained_tokens, job.result_files) == (None, None, None, [])
    assert job.method
    assert job.method.supervised
    assert job.method.supervised.hyperparameters
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (25, 1)  # what "auto" came to
    assert job.method.supervised.hyperparameters.n_epochs == 25

    token = await stack.acquire(job.id)
    await report(stack, job.id, token, step(1, 4.0), messages=["attempt 1 of 1"])
    running = await ada.fine_tuning.jobs.retrieve(job.id)
    assert running.status == "running"
    assert running.estimated_finish
    assert running.estimated_finish >= running.created_at + 30
    loss = job_pb2.ValidationLoss(dataset=validation.id, bits_per_byte=1.5, num_bytes=2)
    await report(stack, job.id, token, step(2, float("nan")), step(3, 2.5, validation=[loss]))
    version = await stack.finish(job.id, token)

    job = await ada.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.trained_tokens, job.estimated_finish, job.error) == ("succeeded", 30, None, None)
    assert job.finished_at
    assert job.fine_tuned_model
    assert job.fine_tuned_model.startswith("ft.seedling.tales.")
    assert (version.model, version.datasets, version.parent) == (
        job.fine_tuned_model,
        [f"{training.id}@1"],
        "lab/seedling@1",
    )

    events = [event async for event in ada.fine_tuning.jobs.list_events(job.id, limit=2)]  # several pages
    assert [event.message for event in events][::-1] == [
        "The job is queued",
        "The job has started",
        "attempt 1 on t",
        "Step 1/3: training loss=4.0000",
        "attempt 1 of 1",
        "Step 2/3: training loss=nan",
        "Step 3/3: training loss=2.5000, validation 1.5000 bits per byte",
        "The job has succeeded",
    ]
    metrics = [event.data for event in events if event.type == "metrics"]
    assert [data["train_loss"] for data in metrics] == [2.5, None, 4.0]
    assert len({event.id for event in events}) == len(events)
    (checkpoint,) = (await ada.fine_tuning.jobs.checkpoints.list(job.id)).data
    assert (checkpoint.step_number, checkpoint.metrics.train_loss) == (3, 2.5)
    assert checkpoint.fine_tuned_model_checkpoint == version.name

    content = (await ada.files.content(job.result_files[0])).text
    assert [row["train_loss"] for row in csv.DictReader(content.splitlines())] == ["4.0", "nan", "2.5"]
    assert (await ada.files.retrieve(job.result_files[0])).purpose == "fine-tune-results"

    model = job.fine_tuned_model
    with pytest.raises(openai.InternalServerError, match="it is being loaded: try again in a few seconds") as unready:
        await ada.completions.create(model=model, prompt="User: Hi!\nAssistant:")
    assert unready.value.status_code == 503
    await stack.serve(version.name)
    await asyncio.sleep(1.1)  # the gateway's own memory of where names lead
    for name in (model, checkpoint.fine_tuned_model_checkpoint):
        answer = await ada.completions.create(model=name, prompt="User: Hi!\nAssistant:", max_tokens=8)
        assert answer.choices[0].text == " world"
    stream = await ada.completions.create(model=model, prompt="Hello", max_tokens=8, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == " world"
    listed = [found.id async for found in ada.models.list()]
    assert listed.count(model) == 1
    deployed = await stack.ada.deployments.list()
    assert (model, version.name) in [(found.target, found.version) for found in deployed]


async def test_the_client_without_an_event_loop_does_it_too(stack: Stack) -> None:
    chosen = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.1}

    def use() -> None:
        with openai.OpenAI(base_url=f"{stack.http_url}/v1", api_key=stack.ada_key, max_retries=0) as client:
            file = client.files.create(file=("sync.jsonl", jsonl(TALK)), purpose="fine-tune")
            assert client.files.content(file.id).read() == jsonl(TALK)
            job = client.fine_tuning.jobs.create(
                model="lab/seedling",
                training_file=file.id,
                method={"type": "supervised", "supervised": {"hyperparameters": chosen}},
            )
            assert job.hyperparameters.to_dict() == chosen
            assert job.id in [found.id for found in client.fine_tuning.jobs.list()]
            assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
            assert client.files.delete(file.id).deleted
            with pytest.raises(openai.NotFoundError):
                client.files.retrieve(file.id)

    await asyncio.to_thread(use)


async def test_every_answer_is_exactly_of_openais_types(stack: Stack, ada, http) -> None:
    file = await upload(ada, TALK, expires_after={"anchor": "created_at", "seconds": 7200})
    done = await submit(ada, file)
    token = await stack.acquire(done.id)
    await report(stack, done.id, token, step(1, 4.0))
    await stack.finish(done.id, token)
    waiting, failed = await submit(ada, file, metadata={"a": "b"}), await submit(ada, file)
    error = job_pb2.JobError(code="BAD_DATA", message="row 3 is bad", parameter="datasets")
    await stack.trainer.FinishJob(
        job_pb2.FinishJobRequest(job_id=failed.id, fencing_token=await stack.acquire(failed.id), failed=error)
    )

    async def get(path: str) -> Any:
        return (await http.get(path)).raise_for_status().json()

    kept = exactly(FileObject, await get(f"/files/{file.id}"))
    assert kept.expires_at == kept.created_at + 7200
    for job in (done, waiting, failed):
        exactly(FineTuningJob, await get(f"/fine_tuning/jobs/{job.id}"))
    for event in (await get(f"/fine_tuning/jobs/{failed.id}/events"))["data"]:
        exactly(FineTuningJobEvent, event)
    checkpoints = (await get(f"/fine_tuning/jobs/{done.id}/checkpoints"))["data"]
    exactly(FineTuningJobCheckpoint, checkpoints[0])
    assert (await get(f"/fine_tuning/jobs/{waiting.id}/checkpoints"))["data"] == []
    for path, kind in (("/files", FileObject), ("/fine_tuning/jobs", FineTuningJob)):
        page = await get(f"{path}?limit=2")
        named = {"first_id": page["data"][0]["id"], "last_id": page["data"][-1]["id"]} if kind is FileObject else {}
        assert page == {"object": "list", "data": page["data"], "has_more": True} | named
        assert len(page["data"]) == 2
        for item in page["data"]:
            exactly(kind, item)
    exactly(FileDeleted, (await http.delete(f"/files/{file.id}")).json())
    seen = await ada.fine_tuning.jobs.retrieve(failed.id)
    assert seen.error
    assert (seen.status, seen.error.code, seen.error.param) == ("failed", "BAD_DATA", "datasets")
    last = (await ada.fine_tuning.jobs.list_events(failed.id)).data[0]
    assert (last.level, last.message) == ("error", "The job has failed: row 3 is bad")


async def test_a_field_that_openai_lacks_is_noticed(ada) -> None:
    """The planted mistake."""
    file = (await upload(ada, TALK)).to_dict()
    exactly(FileObject, file)
    for wrong in (file | {"sha256": ""}, file | {"created_at": "now"}, {**file, "status": "ok"}):
        with pytest.raises((AssertionError, ValueError)):
            exactly(FileObject, wrong)


async def test_lists_are_paged_in_the_order_asked_for(bob) -> None:
    files = [(await upload(bob, TALK, name=f"{number}.jsonl")).id for number in range(5)]
    assert [file.id async for file in bob.files.list(limit=2)] == files[::-1]
    assert [file.id async for file in bob.files.list(limit=2, order="asc")] == files
    assert [file.id async for file in bob.files.list(purpose="fine-tune-results")] == []
    file = await bob.files.retrieve(files[0])
    jobs = [(await submit(bob, file, metadata={"number": str(number)})).id for number in range(3)]
    assert [job.id async for job in bob.fine_tuning.jobs.list(limit=2)] == jobs[::-1]
    assert [job.id async for job in bob.fine_tuning.jobs.list(metadata={"number": "1"})] == jobs[1:2]
    for page in (bob.files.list(after="nobody"), bob.fine_tuning.jobs.list(after="../1"), bob.files.list(limit=0)):
        with pytest.raises(openai.BadRequestError):
            await page
    with pytest.raises(openai.BadRequestError, match="is no event of"):
        await bob.fine_tuning.jobs.list_events(jobs[0], after=f"ftevent-{jobs[1]}-1")
    for job in jobs:
        await bob.fine_tuning.jobs.cancel(job)


async def test_a_running_job_is_cancelled_by_its_worker_and_one_that_has_ended_is_not(stack: Stack, ada) -> None:
    job = await submit(ada, await upload(ada, TALK))
    token = await stack.acquire(job.id)
    for _ in range(2):  # again it changes nothing
        assert (await ada.fine_tuning.jobs.cancel(job.id)).status == "running"
    await stack.trainer.FinishJob(
        job_pb2.FinishJobRequest(job_id=job.id, fencing_token=token, cancelled=job_pb2.Cancelled())
    )
    job = await ada.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.fine_tuned_model, job.result_files) == ("cancelled", None, [])
    with pytest.raises(openai.BadRequestError, match="has already ended"):
        await ada.fine_tuning.jobs.cancel(job.id)


async def test_others_files_and_jobs_are_not_there_but_for_admins(stack: Stack, ada, bob) -> None:
    file = await upload(ada, TALK)
    job = await submit(ada, file)
    jobs = bob.fine_tuning.jobs
    for call in (
        bob.files.retrieve(file.id),
        bob.files.content(file.id),
        bob.files.delete(file.id),
        jobs.retrieve(job.id),
        jobs.cancel(job.id),
        jobs.list_events(job.id),
        jobs.checkpoints.list(job.id),
    ):
        with pytest.raises(openai.NotFoundError):
            await call
    with pytest.raises(openai.BadRequestError) as refused:
        await submit(bob, file)
    assert (refused.value.param, refused.value.code) == ("training_file", "file_not_found")
    assert file.id not in [found.id async for found in bob.files.list()]
    assert job.id not in [found.id async for found in jobs.list()]
    assert (await ada.fine_tuning.jobs.retrieve(job.id)).status == "queued"
    admin = openai.AsyncOpenAI(base_url=f"{stack.http_url}/v1", api_key=stack.registry.admin_key, max_retries=0)
    async with admin:
        assert (await admin.files.retrieve(file.id)).filename == "rows.jsonl"
        assert job.id in [found.id async for found in admin.fine_tuning.jobs.list()]
        assert (await admin.fine_tuning.jobs.cancel(job.id)).status == "cancelled"


async def test_a_job_of_the_platforms_own_kind_is_no_fine_tuning_job(stack: Stack, ada) -> None:
    file = await upload(ada, TALK)
    await submit(ada, file)  # which makes the dataset
    spec = job_pb2.FineTuneSpec(
        output_model="own", base="lab/seedling", datasets=[file.id], options=job_pb2.TrainOptions(steps=1)
    )
    own = await stack.ada.jobs.create(spec)
    with pytest.raises(openai.NotFoundError) as absent:
        await ada.fine_tuning.jobs.retrieve(own.id)
    assert absent.value.code == "fine_tune_not_found"
    assert own.id not in [job.id async for job in ada.fine_tuning.jobs.list()]


async def test_who_may_not_train_is_told_so(stack: Stack) -> None:
    key = await stack.key_of("eve", registry_pb2.ROLE_USER)
    async with openai.AsyncOpenAI(base_url=f"{stack.http_url}/v1", api_key=key, max_retries=0) as eve:
        for call in (upload(eve, TALK), eve.files.list(), eve.fine_tuning.jobs.list()):
            with pytest.raises(openai.PermissionDeniedError, match="needs the permission 'train'"):
                await call


async def test_a_request_that_is_sent_again_with_its_idempotency_key_is_done_once(ada, http) -> None:
    before = len([file async for file in ada.files.list()])
    once: dict[str, Any] = {"extra_headers": {"Idempotency-Key": "k" * 300}}
    files = [await upload(ada, TALK, **once) for _ in range(2)]
    assert files[0].id == files[1].id
    assert len([file async for file in ada.files.list()]) == before + 1
    jobs = [await submit(ada, files[0], **once) for _ in range(2)]
    assert jobs[0] == jobs[1]
    others = await asyncio.gather(*(submit(ada, files[0], extra_headers={"Idempotency-Key": "x"}) for _ in range(4)))
    assert len({job.id for job in others}) == 1
    assert (await submit(ada, files[0])).id not in {jobs[0].id, others[0].id}


async def test_a_model_under_a_licence_is_tuned_by_who_accepted_it_alone(stack: Stack, bob) -> None:
    await stack.add_version("bloom", "bigscience-rail-1.0")
    file = await upload(bob, TALK)
    with pytest.raises(openai.PermissionDeniedError, match=r"accept bigscience-rail-1\.0") as refused:
        await submit(bob, file, model="bloom")
    assert (refused.value.code, refused.value.param) == ("licence_not_accepted", "model")
    assert [job.id async for job in bob.fine_tuning.jobs.list() if job.model == "bloom"] == []


async def test_a_job_outlives_its_file(stack: Stack, ada) -> None:
    file = await upload(ada, TALK, {"inputs": "kept", "targets": " rows"})
    job = await submit(ada, file)
    await ada.files.delete(file.id)
    with pytest.raises(openai.BadRequestError) as refused:
        await submit(ada, file)
    assert (refused.value.param, refused.value.code) == ("training_file", "file_not_found")
    token = await stack.acquire(job.id)  # with the dataset, whose rows are still there
    digest = (await stack.ada.datasets.get(file.id)).digest
    assert b"kept" in await stack.ada.artifacts.read(digest)
    await stack.finish(job.id, token)
    assert (await ada.fine_tuning.jobs.retrieve(job.id)).training_file == file.id
