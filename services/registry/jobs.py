"""Jobs as their users see them: submit, look, watch, cancel. Who runs them: leases.py."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from bloom.config import PRESETS, BloomConfig
from services.common.artifacts import ArtifactStore
from services.common.errors import FailedPrecondition, InvalidArgument
from services.registry import audit
from services.registry.aliases import resolve
from services.registry.continuation import check_continues
from services.registry.corpus_cleaning import resolve_cleaning
from services.registry.database import Clock, Database, insert_row, utc_now
from services.registry.dataset_names import check_datasets_exist
from services.registry.dataset_reports import resolve_validation
from services.registry.estimates import THIS_MACHINE, Estimate, TrainingCluster, estimate
from services.registry.evaluations.service import check_held_out, check_never_trained_on
from services.registry.evaluations.suites import measurable_suite, text_suite
from services.registry.fine_tunings import FineTuning, check_fine_tuning
from services.registry.job_auto import Chosen, choose
from services.registry.job_checkpoints import check_source
from services.registry.job_events import enter, lock_job, read_events, read_job, record_first, say, wake
from services.registry.job_queue import queue_time
from services.registry.job_specs import (
    DEFAULT_LICENCE,
    AnyJobSpec,
    CleanCorpusSpec,
    EvaluateSpec,
    FineTuneSpec,
    ImportModelSpec,
    JobSpec,
    PretrainSpec,
    TrainTokenizerSpec,
    ValidateDatasetSpec,
    VersionSpec,
    aim_of,
    check_layout_fits,
    check_lora,
    check_options,
    check_validation,
    spec_to_row,
    start_of,
)
from services.registry.job_watchers import JobWatchers
from services.registry.licences.acceptance import require_acceptance
from services.registry.names import check_model_name, check_name, new_id
from services.registry.pages import Page, PageRequest, read_page
from services.registry.projects.quotas import check_jobs
from services.registry.projects.scope import ProjectScoped
from services.registry.projects.session import check_usable
from services.registry.references import keep
from services.registry.search import JobQuery
from services.registry.tables import (
    CANCELLED,
    PAUSED,
    PENDING,
    Alias,
    Dataset,
    Deployment,
    Job,
    JobDataset,
    JobEvent,
    Model,
    ModelVersion,
)
from services.registry.tokenizer_training import resolve_corpus
from services.registry.tokenizers import check_fits, vocabulary_size
from services.registry.training_data import read_training_data
from services.registry.version_states import hold, hold_model
from services.registry.versions import decide_licence

MAX_KEY = 200
SUBMISSIONS = 4  # worked on at once, of six that write: readers and leases do not wait for a whole burst
MAX_SEQUENCE = 2**31 - 1
VOCABULARY_MULTIPLE = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    spec: AnyJobSpec
    created_by: str  # principal
    deploy_alias: str = ""
    idempotency_key: str = ""
    priority: str = "NORMAL"  # of job_queue.PRIORITIES
    fine_tuning: FineTuning | None = None  # of a job that OpenAI's API submits


class Jobs:
    def __init__(
        self,
        database: Database,
        artifacts: ArtifactStore,
        clock: Clock = utc_now,
        watch_poll_s: float = 0.3,
        cluster: TrainingCluster = THIS_MACHINE,
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._clock = clock
        self._watchers = JobWatchers(database, watch_poll_s)
        self._cluster = cluster
        self._submissions = asyncio.Semaphore(SUBMISSIONS)

    async def create(self, new: NewJob) -> Job:
        """Check what is cheap to check; store the job, its first event and its wake-up in one transaction.

        Raises InvalidArgument naming the parameter and its range, NotFound for what the job refers to.
        """
        _check_plain(new)
        async with self._submissions:
            return await self._create(new)

    async def _create(self, new: NewJob) -> Job:
        spec = new.spec
        shape = None
        if isinstance(spec, ValidateDatasetSpec):
            spec = await resolve_validation(self._database, self._artifacts, spec)
            return await self._store(replace(new, spec=spec), None)
        if isinstance(spec, TrainTokenizerSpec):
            return await self._store(replace(new, spec=await resolve_corpus(self._database, spec)), None)
        if isinstance(spec, CleanCorpusSpec):
            return await self._store(replace(new, spec=await resolve_cleaning(self._database, spec)), None)
        if isinstance(spec, EvaluateSpec | ImportModelSpec):
            return await self._store(new, None)
        if isinstance(spec, PretrainSpec):
            shape = await asyncio.to_thread(_check_pretrain_shape, self._artifacts, spec)
        data = await read_training_data(self._database, self._artifacts, spec)
        spec = replace(spec, datasets=data.names)
        if isinstance(spec, FineTuneSpec):
            async with self._database.read() as session:
                base = await resolve(session, spec.base)
            await asyncio.to_thread(check_continues, self._artifacts, base, spec)
            spec = replace(spec, base=base.name)
            shape = BloomConfig.from_hf(json.loads(base.config_json))
        assert shape is not None
        num_bytes = data.num_bytes(spec.options)
        chosen, expected = await asyncio.to_thread(_choose, spec, shape, num_bytes, self._cluster)
        said = [chosen.said] if chosen.said else []
        return await self._store(replace(new, spec=chosen.spec), expected, said)

    async def _store(self, new: NewJob, expected: Estimate | None, said: Sequence[str] = ()) -> Job:
        """The job, with its first events and its wake-up; the one that its idempotency key has made already.

        said: what was chosen for the job, an event each.
        """
        async with self._database.write() as session:
            if new.idempotency_key and (job := await _find_by_key(session, new)):
                return job
            if isinstance(new.spec, PretrainSpec | ValidateDatasetSpec):  # a base keeps its own
                await keep(session, self._artifacts, [new.spec.tokenizer_digest])
            return await self._insert(session, new, expected, said)

    async def _insert(self, session: AsyncSession, new: NewJob, expected: Estimate | None, said: Sequence[str]) -> Job:
        now = self._clock()
        spec = await _resolve(session, new)
        await check_usable(session, *_changed_by(new, spec))
        await check_jobs(session)
        job = await insert_row(
            session,
            Job,
            id=new_id("job", now),
            spec=spec_to_row(spec),
            created_by=new.created_by,
            deploy_alias=new.deploy_alias,
            idempotency_key=new.idempotency_key or None,
            create_time=now,
            wake_time=now,
            priority=new.priority,
            queue_time=queue_time(new.priority, now),
            estimate=expected,
            fine_tuning=new.fine_tuning,
            output_model=spec.output_model if isinstance(spec, VersionSpec) else "",
            base=start_of(spec),
            last_sequence=1 + len(said),
        )
        if job is None:  # another call with the same key was faster
            job = await _find_by_key(session, new)
            assert job is not None
            return job
        datasets = [] if isinstance(spec, EvaluateSpec) else spec.datasets
        session.add_all(JobDataset(job_id=job.id, dataset=dataset) for dataset in datasets)
        record_first(session, job, now, said)
        wake(session, job, now)
        audit.record(session, now, f"job/{job.id}", aim_of(spec))
        return job

    async def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        async with self._database.read() as session:
            return await read_job(session, job_id)

    async def list_jobs(self, state: str, page: PageRequest, query: JobQuery | None = None) -> Page[Job]:
        """In one state, or in every when `state` is empty; newest first unless `query` says so."""
        query = query or JobQuery()
        asked = query.select().where(Job.state == state) if state else query.select()
        async with self._database.read() as session:
            return await read_page(
                session,
                asked,
                Job.id,
                page,
                scope=f"{query.scope} {state}",
                newest_first=not query.oldest_first,
                same=JobDataset.job_id if query.names_dataset_version else None,
                keys_first=bool(query.text),
            )

    async def watch(self, job_id: str, after: int) -> AsyncIterator[JobEvent]:
        """Events with a sequence above `after`, then new ones as they come; ends with the job. Raises NotFound."""
        after = min(after, MAX_SEQUENCE)
        while True:
            async with self._database.read() as session:
                ended = (await read_job(session, job_id)).ended  # before the events: the last one is then among them
                events = await read_events(session, job_id, after)
            for event in events:
                yield event
                after = event.sequence
            if not events:
                if ended:
                    return
                await self._watchers.wait(job_id, after)

    async def cancel(self, job_id: str) -> Job:
        """End a PENDING or PAUSED job; ask the worker of a RUNNING one to stop. Raises NotFound, FailedPrecondition."""
        now = self._clock()
        async with self._database.write() as session:
            job = await lock_job(session, job_id)
            if job.ended:
                raise FailedPrecondition(f"job {job.id} has already ended: {job.state}; nothing is left to cancel")
            if job.cancel_requested:
                raise FailedPrecondition(f"job {job.id} is already being cancelled; its worker has been told to stop")
            job.cancel_requested = True
            audit.record(session, now, f"job/{job.id}", "cancel requested")
            if job.state in (PENDING, PAUSED):
                enter(session, job, CANCELLED, now)
            else:
                say(session, job, now, "cancel requested")
        return job


def _changed_by(new: NewJob, spec: AnyJobSpec) -> list[tuple[type[ProjectScoped], str]]:
    """What the job makes or changes when it succeeds, by name."""
    if isinstance(spec, ValidateDatasetSpec):
        return [(Dataset, spec.dataset)]
    if isinstance(spec, CleanCorpusSpec):
        return [(Dataset, f"{spec.output_dataset}@1")]
    if isinstance(spec, EvaluateSpec | TrainTokenizerSpec):
        return []
    return [(Model, spec.output_model), (Alias, new.deploy_alias), (Deployment, new.deploy_alias)]


def _choose(spec: JobSpec, shape: BloomConfig, num_bytes: int, where: TrainingCluster) -> tuple[Chosen, Estimate]:
    chosen = choose(spec, shape, num_bytes, where)
    return chosen, estimate(chosen.spec, shape, num_bytes, where)


async def _find_by_key(session: AsyncSession, new: NewJob) -> Job | None:
    query = select(Job).where(Job.created_by == new.created_by, Job.idempotency_key == new.idempotency_key)
    return (await session.scalars(query)).one_or_none()


def _check_plain(new: NewJob) -> None:
    """What can be checked without looking anything up."""
    if isinstance(new.spec, JobSpec):
        _check_training(new.spec)
    elif isinstance(new.spec, ImportModelSpec):
        check_model_name(new.spec.model)
    elif new.deploy_alias:
        raise InvalidArgument(f"deploy_alias={new.deploy_alias[:80]!r}: this job makes no version; leave it empty")
    if new.deploy_alias:
        check_name("alias", new.deploy_alias)
    if new.fine_tuning:
        check_fine_tuning(new.fine_tuning)
    if len(new.idempotency_key) > MAX_KEY:
        raise InvalidArgument(f"idempotency_key has {len(new.idempotency_key)} characters; use at most {MAX_KEY}")


def _check_training(spec: JobSpec) -> None:
    check_model_name(spec.output_model)
    check_options(spec.options)
    if isinstance(spec, FineTuneSpec) and spec.lora:
        check_lora(spec.lora)
    if not spec.datasets:
        raise InvalidArgument("datasets is empty; name at least one dataset")
    check_validation(spec)


def _check_pretrain_shape(artifacts: ArtifactStore, spec: PretrainSpec) -> BloomConfig:
    """The configuration, which is a BLOOM's and which tokenizer and layout fit. Blocking."""
    config = PRESETS.get(spec.config) or _config(artifacts, spec)
    check_fits(artifacts, spec.tokenizer_digest, config.vocab_size)
    check_layout_fits(spec, config)
    return config


def _config(artifacts: ArtifactStore, spec: PretrainSpec) -> BloomConfig:
    try:
        config = json.loads(spec.config)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise InvalidArgument(
            f"config={spec.config[:40]!r} is neither a preset ({', '.join(PRESETS)}) nor a config.json; give either"
        )
    if config.get("vocab_size") == 0:
        size = vocabulary_size(artifacts, spec.tokenizer_digest)
        config["vocab_size"] = -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    try:
        return BloomConfig.from_hf(config)
    except ValueError as error:
        raise InvalidArgument(f"config: {error}") from error


async def _resolve(session: AsyncSession, new: NewJob) -> AnyJobSpec:
    """The spec with its references found and fixed, and a licence under which its version can be registered.

    Raises FailedPrecondition for a version whose licence the submitter has still to accept.
    """
    spec = new.spec
    if isinstance(spec, ValidateDatasetSpec | TrainTokenizerSpec | CleanCorpusSpec):
        return spec
    if isinstance(spec, ImportModelSpec):
        model = await hold_model(session, spec.output_model)
        return replace(spec, licence=await decide_licence(session, spec.model, model, spec.licence))
    if isinstance(spec, EvaluateSpec):
        return await _resolve_evaluation(session, spec, new.created_by)
    spec = replace(spec, validation_datasets=await _check_held_out(session, spec))
    if isinstance(spec, PretrainSpec):
        await check_source(session, spec)
        model = await hold_model(session, spec.output_model)
        wanted = spec.licence or ("" if model else DEFAULT_LICENCE)
        return replace(spec, licence=await decide_licence(session, spec.output_model, model, wanted))
    base = await hold(session, spec.base)
    await require_acceptance(session, new.created_by, base)
    check_layout_fits(spec, BloomConfig.from_hf(json.loads(base.config_json)))
    model = await hold_model(session, spec.output_model)  # after the base, as in whatever locks both
    await decide_licence(session, spec.output_model, model, "", [base])
    await check_source(session, spec)
    return await _with_suite(session, spec, base) if spec.evaluate_with else spec


async def _resolve_evaluation(session: AsyncSession, spec: EvaluateSpec, submitter: str) -> EvaluateSpec:
    version = await resolve(session, spec.version)
    await require_acceptance(session, submitter, version)
    suite = await measurable_suite(session, spec.suite)
    await check_never_trained_on(session, version, suite)
    return replace(spec, version=version.name, suite=suite.name)


async def _with_suite(session: AsyncSession, spec: FineTuneSpec, base: ModelVersion) -> FineTuneSpec:
    suite = await text_suite(session, spec.evaluate_with)
    check_held_out(suite, await check_datasets_exist(session, spec.datasets), spec.output_model)
    await check_never_trained_on(session, base, suite)
    return replace(spec, evaluate_with=suite.name)


async def _check_held_out(session: AsyncSession, spec: JobSpec) -> list[str]:
    """The validation datasets, fixed to versions. Raises NotFound, InvalidArgument."""
    if not spec.validation_datasets:
        return []
    trained_on = {dataset.digest: dataset.name for dataset in await check_datasets_exist(session, spec.datasets)}
    held_out = await check_datasets_exist(session, spec.validation_datasets)
    for dataset in held_out:
        what = f"validation dataset {dataset.name!r}"
        if dataset.format == "BLEND":
            raise InvalidArgument(f"{what} is a BLEND, whose shards have no text to count bytes of; upload rows")
        if dataset.format not in ("TEXT", "MULTITASK"):
            raise InvalidArgument(f"{what} is {dataset.format}; validate on TEXT or MULTITASK rows")
        if same := trained_on.get(dataset.digest):
            raise InvalidArgument(f"{what} has the rows of {same!r}, which is trained on; upload rows held out")
    return [dataset.name for dataset in held_out]
