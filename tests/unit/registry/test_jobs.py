import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import select
from sqlalchemy.event import listen

from services.common.errors import DomainError, FailedPrecondition, InvalidArgument, NotFound
from services.registry.job_specs import LoraOptions, TrainOptions
from services.registry.jobs import NewJob
from services.registry.leases import Failed, Succeeded
from services.registry.pages import PageRequest
from services.registry.tables import CANCELLED, PENDING, RUNNING, Job, Wakeup
from tests.support.registry_data import store_checkpoint, tokenizer_bytes


async def rows(registry, table):
    async with registry.database.read() as session:
        return list(await session.scalars(select(table)))


async def test_a_job_and_its_wake_up_are_stored_together(registry):
    job = await registry.submit()
    assert job.state == PENDING
    assert [wakeup.job_id for wakeup in await rows(registry, Wakeup)] == [job.id]


async def test_the_base_of_a_fine_tune_is_fixed_when_the_job_is_created(registry):
    spec = await registry.fine_tune_spec()
    await registry.set_alias("flower", "seedling")
    job = await registry.submit(
        spec=type(spec)(output_model="sprout", base="flower", datasets=["tasks"], options=spec.options)
    )
    await registry.add_version()
    await registry.set_alias("flower", "seedling@2")
    assert (await registry.jobs.get(job.id)).spec["base"] == "seedling@1"


async def test_the_same_idempotency_key_gives_the_same_job(registry):
    spec = await registry.pretrain_spec()
    submitting = [registry.submit(spec=spec, idempotency_key="once") for _ in range(5)]
    assert len({job.id for job in await asyncio.gather(*submitting)}) == 1
    assert len(await rows(registry, Job)) == 1
    assert len(await rows(registry, Wakeup)) == 1


async def test_two_users_may_use_the_same_idempotency_key(registry):
    spec = await registry.pretrain_spec()
    jobs = [
        await registry.jobs.create(NewJob(spec=spec, created_by=user, idempotency_key="1")) for user in ("ada", "grace")
    ]
    assert jobs[0].id != jobs[1].id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": TrainOptions(steps=10, learning_rate=1.5)}, r"learning_rate=1\.5 .* choose a value in \(0, 1\]"),
        ({"output_model": "Sprout!"}, "model name 'Sprout!' is not allowed"),
        ({"datasets": []}, "name at least one dataset"),
        ({"datasets": ["udhr", "udhr"]}, "name one twice"),
        ({"datasets": ["tasks"]}, "dataset 'tasks@1' is MULTITASK; pre-training reads TEXT or BLEND only"),
        ({"datasets": ["udhr", "corpora"]}, "dataset 'corpora@1' is a BLEND, which goes alone"),
        (
            {"datasets": ["corpora"], "options": TrainOptions(steps=9, max_examples_per_dataset=5)},
            "max_examples_per_dataset=5 is for rows, and dataset 'corpora@1' is a BLEND; give its corpora weights",
        ),
        (
            {"options": TrainOptions(steps=9, normalize_targets=True)},
            "normalize_targets=true is for examples, and dataset 'udhr@1' is TEXT; leave it out",
        ),
        ({"options": TrainOptions(steps=10, layout="2x1x1")}, "tp=2 does not divide 3 heads; choose 1 or 3"),
        ({"options": TrainOptions(steps=9, batch_ramp="4,8")}, "is not START,INCREMENT,SAMPLES"),
        (
            {"options": TrainOptions(steps=9, batch_ramp="4,4,99")},
            "8 sequences .* are computed at a time",
        ),
        ({"options": TrainOptions(steps=9, warmup_steps=1, warmup_samples=9)}, "warmup_steps and warmup_samples both"),
        ({"datasets": ["gone"]}, "no dataset 'gone'; upload it"),
        ({"config": "560M"}, "config='560M' is neither a preset"),
        ({"config": "[]"}, "neither a preset"),
        ({"config": '{"model_type": "bloom", "hidden_size": 13, "n_layer": 2, "n_head": 3}'}, "hidden_size=13"),
        ({"config": '{"model_type": "llama"}'}, "model_type='llama'"),
        ({"tokenizer_digest": "sha256:" + "0" * 64}, "no artifact sha256:0+ in the store"),
        ({"tokenizer_digest": ""}, "tokenizer_digest is empty"),
        ({"tokenizer_digest": "../../etc/passwd"}, "is not 'sha256:' and 64"),
        ({"licence": "x" * 200}, "is not allowed; give an SPDX identifier"),
        ({"options": TrainOptions(steps=9, validate_every_steps=3)}, "validate_every_steps=3 without validation_data"),
        ({"validation_datasets": ["gone"]}, "no dataset 'gone'; upload it"),
        ({"validation_datasets": ["udhr"]}, "'udhr' is trained on, so its loss validates nothing; upload rows"),
        ({"validation_datasets": ["copy"]}, "'copy@1' has the rows of 'udhr@1', which is trained on"),
        ({"validation_datasets": ["tasks", "tasks"]}, "name one twice"),
        ({"validation_datasets": ["corpora"]}, "'corpora@1' is a BLEND, whose shards have no text to count bytes of"),
    ],
)
async def test_a_pretrain_job_that_cannot_run_is_refused_and_nothing_is_stored(registry, changes, message):
    await registry.add_dataset("tasks", "MULTITASK")
    await registry.add_dataset("corpora", "BLEND")
    await registry.add_dataset("copy")
    spec = await registry.pretrain_spec(**changes)
    with pytest.raises(DomainError, match=message):
        await registry.submit(spec=spec)
    assert await rows(registry, Job) == []
    assert await rows(registry, Wakeup) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "seedlin"}, "no model, version or alias 'seedlin'; did you mean 'seedling'"),
        ({"lora": LoraOptions(rank=2000)}, r"lora\.rank=2000 is out of range; choose a value in \[1, 1024\]"),
        ({"options": TrainOptions()}, "got neither, set exactly one"),
    ],
)
async def test_a_fine_tune_that_cannot_run_is_refused(registry, changes, message):
    spec = await registry.fine_tune_spec(**changes)
    with pytest.raises(DomainError, match=message):
        await registry.submit(spec=spec)


async def test_a_job_that_names_a_mixture_learns_from_all_of_its_datasets(registry):
    spec = await registry.fine_tune_spec(datasets=["mixed"], options=TrainOptions(epochs=1, normalize_targets=True))
    await registry.add_dataset("fields", "FIELDS")
    await registry.add_dataset("mixed", "MIXTURE")
    job = await registry.submit(spec=spec)
    assert job.spec["datasets"] == ["mixed@1", "fields@1", "tasks@1"]
    acquired = await registry.leases.acquire(job.id, "worker-1")
    assert [(found.name, found.format) for found in acquired.datasets] == [
        ("mixed@1", "MIXTURE"),
        ("fields@1", "FIELDS"),
        ("tasks@1", "MULTITASK"),
    ]


async def test_fields_without_a_mixture_and_two_mixtures_are_refused(registry):
    spec = await registry.fine_tune_spec(datasets=["fields"])
    await registry.add_dataset("fields", "FIELDS")
    with pytest.raises(InvalidArgument, match="dataset 'fields@1' is FIELDS, which need templates; name a MIXTURE"):
        await registry.submit(spec=spec)
    await registry.add_dataset("mixed", "MIXTURE")
    await registry.add_dataset("stirred", "MIXTURE")
    with pytest.raises(InvalidArgument, match="datasets mixed@1, stirred@1 are MIXTUREs; make one of them"):
        await registry.submit(spec=replace(spec, datasets=["mixed", "stirred"]))


async def test_the_most_examples_count_in_the_steps_that_a_job_is_expected_to_take(registry):
    spec = await registry.fine_tune_spec()
    rows = b"".join(b'{"inputs": "%s", "targets": "x"}\n' % (b"a" * 9000) for _ in range(100))
    await registry.datasets.create("long", "MULTITASK", registry.artifacts.write_bytes(rows))
    options = TrainOptions(epochs=1, micro_batch=1)
    whole = await registry.submit(spec=replace(spec, datasets=["long"], options=options))
    capped = replace(spec, datasets=["long"], options=replace(options, max_examples_per_dataset=10))
    steps = whole.estimate["num_steps"], (await registry.submit(spec=capped)).estimate["num_steps"]
    assert steps == (441, 44)


async def test_a_worker_gets_the_validation_datasets_too_and_a_version_is_not_said_to_be_trained_on_them(registry):
    await registry.add_dataset("tasks", "MULTITASK")
    options = TrainOptions(steps=9, validate_every_steps=3)
    job = await registry.submit(spec=await registry.pretrain_spec(validation_datasets=["tasks"], options=options))
    acquired = await registry.leases.acquire(job.id, "t")
    assert [dataset.name for dataset in acquired.datasets] == ["udhr@1", "tasks@1"]
    files = store_checkpoint(registry.artifacts).files
    done = await registry.leases.finish(job.id, 1, Succeeded(files))
    versions = await registry.versions.list_versions("sprout", PageRequest())
    assert [(row.name, row.datasets) for row in versions.rows] == [(done.model_version, ["udhr@1"])]


async def test_vocabulary_0_stands_for_the_tokenizers_own(registry):
    config = '{"model_type": "bloom", "hidden_size": 12, "n_layer": 2, "n_head": 3, "vocab_size": 0}'
    job = await registry.submit(spec=await registry.pretrain_spec(config=config))
    assert job.spec["config"] == config


async def test_a_tokenizer_larger_than_the_models_vocabulary_is_refused(registry):
    digest = registry.artifacts.write_bytes(tokenizer_bytes(301))
    with pytest.raises(InvalidArgument, match="has 301 ids, the model's embedding 300 rows"):
        await registry.submit(spec=await registry.pretrain_spec(tokenizer_digest=digest))


async def test_a_fine_tune_into_a_model_under_another_licence_is_refused(registry):
    spec = await registry.fine_tune_spec(output_model="closed")
    await registry.add_version("closed", licence="mit")
    with pytest.raises(InvalidArgument, match=r"'closed' is under 'mit', the new version under 'apache-2\.0'"):
        await registry.submit(spec=spec)


async def test_pretraining_into_a_model_takes_the_models_licence(registry):
    await registry.add_version("sprout", licence="mit")
    assert (await registry.submit()).spec["licence"] == "mit"


async def test_a_pending_job_is_cancelled_at_once(registry):
    job = await registry.submit()
    assert (await registry.jobs.cancel(job.id)).state == CANCELLED
    with pytest.raises(FailedPrecondition, match=f"job {job.id} has already ended: CANCELLED"):
        await registry.jobs.cancel(job.id)


async def test_a_running_job_is_cancelled_by_its_worker_and_only_once(registry):
    job = await registry.submit()
    await registry.leases.acquire(job.id, "worker-1")
    cancelled = await registry.jobs.cancel(job.id)
    assert (cancelled.state, cancelled.cancel_requested) == (RUNNING, True)
    with pytest.raises(FailedPrecondition, match="already being cancelled"):
        await registry.jobs.cancel(job.id)


async def test_an_unknown_job_is_not_found(registry):
    for call in (registry.jobs.get("job-0"), registry.jobs.cancel("job-0"), anext(registry.jobs.watch("job-0", 0))):
        with pytest.raises(NotFound, match="no job 'job-0'"):
            await call


async def test_jobs_are_listed_newest_first_and_by_state(registry):
    spec = await registry.pretrain_spec()
    ids = []
    for _ in range(5):
        ids.append((await registry.submit(spec=spec)).id)
        registry.clock.advance(1)
    await registry.jobs.cancel(ids[0])
    first = await registry.jobs.list_jobs("", PageRequest(size=3))
    second = await registry.jobs.list_jobs("", PageRequest(size=3, token=first.next_token))
    assert [job.id for job in first.rows + second.rows] == ids[::-1]
    assert second.next_token == ""
    assert [job.id for job in (await registry.jobs.list_jobs(CANCELLED, PageRequest())).rows] == ids[:1]
    with pytest.raises(InvalidArgument, match="is not from this list"):
        await registry.jobs.list_jobs(CANCELLED, PageRequest(token=first.next_token))


async def test_a_watcher_sees_every_event_in_order_and_stops_when_the_job_ends(registry):
    job = await registry.submit()
    seen, first_seen = [], asyncio.Event()

    async def watch():
        async for event in registry.jobs.watch(job.id, after=0):
            seen.append((event.sequence, event.kind, event.body))
            first_seen.set()

    watching = asyncio.create_task(watch())
    await first_seen.wait()
    await registry.leases.acquire(job.id, "worker-1")
    await registry.leases.renew(job.id, 1, messages=["tokens written"])
    await registry.leases.finish(job.id, 1, Failed("OUT_OF_MEMORY", "no memory"))
    await asyncio.wait_for(watching, 10)
    assert seen == [
        (1, "state", {"state": "PENDING"}),
        (2, "state", {"state": "RUNNING"}),
        (3, "message", {"message": "attempt 1 on worker-1"}),
        (4, "message", {"message": "tokens written"}),
        (5, "state", {"state": "FAILED"}),
    ]
    assert [event.sequence async for event in registry.jobs.watch(job.id, after=3)] == [4, 5]
    assert [event async for event in registry.jobs.watch(job.id, after=5)] == []


async def test_many_watchers_cost_one_query_and_each_ends_with_its_job(registry):
    jobs = [await registry.submit() for _ in range(3)]

    async def watch(job_id, after):
        return [event.sequence async for event in registry.jobs.watch(job_id, after)]

    watching = [asyncio.create_task(watch(job.id, after)) for job in jobs for after in (0, 1, 99)]
    queries, settled = [], asyncio.Event()

    def note(_connection, _cursor, query, *_):
        if "SELECT" in query:
            queries.append("all" if " IN (" in query else "one")
        if queries[-3:] == ["all"] * 3:  # after each stream's own look
            settled.set()

    listen(registry.database.engine.sync_engine, "before_cursor_execute", note)
    await asyncio.wait_for(settled.wait(), 10)
    for job in jobs:
        await registry.jobs.cancel(job.id)
    seen = await asyncio.wait_for(asyncio.gather(*watching), 10)
    assert seen == [[1, 2], [2], []] * 3


async def test_a_submission_is_eleven_statements(registry):
    """With the transaction's begin on SQLite and the collector's lock on PostgreSQL. Each costs every submission."""
    spec = await registry.pretrain_spec()
    queries = []
    listen(registry.database.engine.sync_engine, "before_cursor_execute", lambda *call: queries.append(call[2]))
    await registry.submit(spec=spec, idempotency_key="once")
    assert len(queries) == 11, queries
    queries.clear()
    await registry.submit(spec=spec, idempotency_key="once")
    assert len(queries) <= 3, queries
