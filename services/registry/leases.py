"""Who runs a job: leases with fencing tokens, the one mechanism by which a job survives whatever dies.

A lease is live while its job is RUNNING. It ends by finishing, by being given back, or by expiring and being found so
(`lapse`): then its token is worth nothing, whatever its holder still believes.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.artifacts import ArtifactStore
from services.common.auth import acting_for
from services.common.errors import Aborted, FailedPrecondition, InvalidArgument
from services.registry import audit, job_logs
from services.registry.alias_changes import JOB, NewChange, set_alias
from services.registry.aliases import resolve
from services.registry.checkpoints import File, inspect_checkpoint
from services.registry.corpus_cleaning import attach_cleaned, check_cleaned
from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.dataset_names import check_datasets_exist
from services.registry.dataset_reports import attach_report, check_report
from services.registry.evaluations.documents import Measurement, check_measures, read_measurement
from services.registry.evaluations.gate_check import GateRefused
from services.registry.evaluations.service import add_measurement
from services.registry.fine_tunings import add_metrics_file
from services.registry.job_energy import Energy, check_energy, with_report
from services.registry.job_events import enter, lock_job, read_job, record, say, wake
from services.registry.job_progress import Progress, newest
from services.registry.job_queue import next_in_turn
from services.registry.job_specs import (
    CleanCorpusSpec,
    EvaluateSpec,
    FineTuneSpec,
    ImportModelSpec,
    PretrainSpec,
    TrainTokenizerSpec,
    ValidateDatasetSpec,
    spec_from_row,
    start_of,
    suite_of,
)
from services.registry.references import keep
from services.registry.tables import (
    CANCELLED,
    FAILED,
    PAUSED,
    PENDING,
    RUNNING,
    SUCCEEDED,
    Dataset,
    Deployment,
    EvaluationSuite,
    Job,
    ModelVersion,
    Wakeup,
)
from services.registry.tokenizer_training import TOKENIZER_FILE, attach_tokenizer, check_tokenizer
from services.registry.versions import NewVersion, add_version

MAX_LOST_LEASES = 20


@dataclass(frozen=True, slots=True)
class Acquired:
    """A lease and everything its job refers to."""

    job: Job
    ttl_s: float
    datasets: list[Dataset]
    base: ModelVersion | None  # or the version to be measured
    suite: EvaluationSuite | None


@dataclass(frozen=True, slots=True)
class Succeeded:
    files: tuple[File, ...]
    documents: str = ""  # digest of what a suite has measured (evaluations/documents.py); "": nothing


@dataclass(frozen=True, slots=True)
class Measured:
    """Of a job that makes no version."""

    documents: str


@dataclass(frozen=True, slots=True)
class Failed:
    code: str
    message: str
    parameter: str = ""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The worker stopped because it was told to cancel."""


Outcome = Succeeded | Measured | Failed | Stopped


@dataclass(frozen=True, slots=True)
class Printed:
    """What a job's processes printed from a position of its log on."""

    position: int
    text: str


NOTHING = Printed(0, "")


class Leases:
    def __init__(
        self,
        database: Database,
        artifacts: ArtifactStore,
        *,
        ttl_s: float = 15.0,
        max_lost_leases: int = MAX_LOST_LEASES,
        clock: Clock = utc_now,
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._ttl_s = ttl_s
        self._max_lost_leases = max_lost_leases
        self._clock = clock

    async def acquire(
        self, job_id: str, worker_id: str, *, kinds: Sequence[str] = (), but: Sequence[str] = ()
    ) -> Acquired:
        """Take the lease of a PENDING job, or of a RUNNING one whose lease expired.

        kinds: of the PENDING job of these whose turn it is before `job_id`'s, where there is one; none of `but`.
        Raises Aborted when another worker holds it, FailedPrecondition when it has ended or is paused, NotFound.
        """
        async with self._database.write() as session:
            now = self._clock()  # not before: to write may have taken its turn, and a lease its time
            job = await lock_job(session, job_id)
            if job.state == RUNNING and _expired(job, now):
                lapse(session, job, now, self._max_lost_leases)
            if job.state == PENDING:
                job = await next_in_turn(session, job, kinds, but, now) if kinds else job
                self._grant(session, job, worker_id, now)
                return await self._with_references(session, job)
        # Out of the transaction: what a lapse has written stays.
        if job.ended:
            raise FailedPrecondition(f"job {job.id} has already ended: {job.state}")
        if job.state == PAUSED:
            raise FailedPrecondition(f"job {job.id} is paused; `anthesis jobs resume {job.id}` lets it go on")
        raise Aborted(f"job {job.id} is held by {job.holder} under token {job.fencing_token}")

    def _grant(self, session: AsyncSession, job: Job, worker_id: str, now: datetime) -> None:
        job.attempts += 1
        job.fencing_token += 1
        job.holder = worker_id
        enter(session, job, RUNNING, now)
        job.lease_expires = now + timedelta(seconds=self._ttl_s)
        say(session, job, now, f"attempt {job.attempts} on {worker_id}")

    async def _with_references(self, session: AsyncSession, job: Job) -> Acquired:
        spec = spec_from_row(job.spec)
        base = await resolve(session, start_of(spec)) if start_of(spec) else None
        names = [] if isinstance(spec, EvaluateSpec) else [*spec.datasets, *spec.validation_datasets]
        suite = await session.get_one(EvaluationSuite, suite_of(spec)) if suite_of(spec) else None
        return Acquired(job, self._ttl_s, await check_datasets_exist(session, names), base, suite)

    async def renew(
        self,
        job_id: str,
        token: int,
        progress: Sequence[Progress] = (),
        messages: Sequence[str] = (),
        printed: Printed = NOTHING,
        energy: Energy | None = None,
    ) -> Job:
        """Extend the lease and record what was reported. energy: of the attempt so far.

        Raises Aborted, changing nothing, for a stale token; InvalidArgument.
        """
        if energy:
            check_energy(energy)
        async with self._database.write() as session:
            now = self._clock()  # not before: to write may have taken its turn, and a lease its time
            job = await lock_job(session, job_id)
            _check_token(job, token)
            if job.state != RUNNING:
                raise Aborted(f"job {job.id} has ended under token {token}: {job.state}")
            job.lease_expires = now + timedelta(seconds=self._ttl_s)
            _report(session, job, now, progress)
            for message in messages:
                say(session, job, now, message)
            if energy:
                job.energy = with_report(job.energy, token, energy)
            await job_logs.append(session, job, printed.position, printed.text)
        return job

    async def release(self, job_id: str, token: int, reason: str) -> None:
        """Give the job back unfinished. Raises Aborted, changing nothing, for a stale token."""
        async with self._database.write() as session:
            now = self._clock()  # not before: to write may have taken its turn, and a lease its time
            job = await lock_job(session, job_id)
            _check_token(job, token)
            if job.state != RUNNING:
                raise Aborted(f"job {job.id} has ended under token {token}: {job.state}")
            say(session, job, now, f"{job.holder} gave the job back: {reason or 'no reason given'}")
            job.holder = None
            enter(session, job, _without_lease(job), now)

    async def finish(self, job_id: str, token: int, outcome: Outcome, progress: Sequence[Progress] = ()) -> Job:
        """End the job; in the same transaction register the version it made, set its alias and deploy it, or keep the
        report it made.

        The same token again gives the same job. Raises Aborted, changing nothing, for a stale token; InvalidArgument
        for files that are no checkpoint, report or measurement: the job then still runs. What it makes is of the job's
        project.
        """
        async with self._database.read() as session:
            job = await read_job(session, job_id)
        with acting_for(job.project):
            return await self._finish(job_id, token, outcome, progress)

    async def _finish(self, job_id: str, token: int, outcome: Outcome, progress: Sequence[Progress]) -> Job:
        async with self._database.read() as session:
            job = await read_job(session, job_id)
            base = await self._with_references(session, job)
        spec = spec_from_row(job.spec)
        measurement = None
        if isinstance(outcome, Succeeded | Measured) and not job.ended:
            _check_token(job, token)
            _check_kind(job, outcome)
            if outcome.documents:
                measurement = await asyncio.to_thread(read_measurement, self._artifacts, outcome.documents)
                assert base.suite is not None  # _check_kind
                check_measures(base.suite, measurement.documents)
        if isinstance(outcome, Succeeded) and not job.ended:
            if isinstance(spec, ValidateDatasetSpec):
                report = await asyncio.to_thread(check_report, self._artifacts, outcome.files)
            elif isinstance(spec, TrainTokenizerSpec):
                tokenizer = await asyncio.to_thread(check_tokenizer, self._artifacts, outcome.files)
            elif isinstance(spec, CleanCorpusSpec):
                cleaned = await asyncio.to_thread(check_cleaned, self._artifacts, outcome.files)
            else:
                new = _new_version(job, base.base, outcome.files)
                checkpoint = await asyncio.to_thread(
                    inspect_checkpoint, self._artifacts, new.files, new.tokenizer_digest
                )
        async with self._database.write() as session:
            job = await lock_job(session, job_id)
            _check_token(job, token)
            if job.ended:
                return job
            now = self._clock()
            _report(session, job, now, progress)
            match outcome:
                case Succeeded() if isinstance(spec, ValidateDatasetSpec):
                    await attach_report(session, self._artifacts, job, spec.dataset, report, now)
                    enter(session, job, SUCCEEDED, now)
                case Succeeded() if isinstance(spec, TrainTokenizerSpec):
                    await attach_tokenizer(session, self._artifacts, job, tokenizer)
                    enter(session, job, SUCCEEDED, now)
                case Succeeded() if isinstance(spec, CleanCorpusSpec):
                    await attach_cleaned(session, self._artifacts, job, spec.output_dataset, cleaned, now)
                    enter(session, job, SUCCEEDED, now)
                case Succeeded():
                    digests = [*new.digests, outcome.documents] if outcome.documents else new.digests
                    await keep(session, self._artifacts, digests)
                    version = await add_version(session, self._artifacts, new, checkpoint, now)
                    job.model_version = version.name
                    if job.fine_tuning:
                        await add_metrics_file(session, self._artifacts, job, now)
                    await _succeed(session, job, version, measurement, now)
                case Measured():
                    assert base.base is not None
                    await keep(session, self._artifacts, [outcome.documents])
                    await _succeed(session, job, base.base, measurement, now)
                case Failed():
                    job.error = {"code": outcome.code, "message": outcome.message, "parameter": outcome.parameter}
                    enter(session, job, FAILED, now)
                case Stopped():
                    if not job.cancel_requested:
                        raise FailedPrecondition(f"nobody asked to cancel job {job.id}; release it to stop running it")
                    enter(session, job, CANCELLED, now)
        return job


def _without_lease(job: Job) -> str:
    """What a job that has not ended becomes when its lease is over."""
    return CANCELLED if job.cancel_requested else PAUSED if job.pause_requested else PENDING


def _expired(job: Job, now: datetime) -> bool:
    return job.lease_expires is None or job.lease_expires <= now


def _check_token(job: Job, token: int) -> None:
    if job.fencing_token != token or job.holder is None:
        raise Aborted(f"token {token} of job {job.id} is stale (newest: {job.fencing_token}); stop running it")


def _check_kind(job: Job, outcome: Succeeded | Measured) -> None:
    """Raise InvalidArgument for an outcome of another kind of job."""
    spec = spec_from_row(job.spec)
    if isinstance(outcome, Measured) != isinstance(spec, EvaluateSpec):
        right = "measured" if isinstance(spec, EvaluateSpec) else "succeeded"
        raise InvalidArgument(f"job {job.id} is another kind of job; end it with {right}")
    if outcome.documents and not suite_of(spec):
        raise InvalidArgument(f"job {job.id} measures by no suite; leave documents out")
    if isinstance(outcome, Measured) and not outcome.documents:
        raise InvalidArgument(f"job {job.id} ends with a measurement; name its documents")


def _report(session: AsyncSession, job: Job, now: datetime, progress: Sequence[Progress]) -> None:
    for item in progress:
        record(session, job, now, "progress", item)
        job.progress = newest(item, job.progress)


def lapse(session: AsyncSession, job: Job, now: datetime, max_lost_leases: int) -> None:
    """End the expired lease of a locked RUNNING job: it waits again, unless it was cancelled or lost too often."""
    say(session, job, now, f"the lease of {job.holder} expired")
    job.holder = None
    job.lost_leases += 1
    if not job.cancel_requested and job.lost_leases >= max_lost_leases:
        job.error = {
            "code": "ATTEMPTS_EXHAUSTED",
            "message": f"{job.lost_leases} workers died or fell silent while running it; see the trainer's log",
            "parameter": "",
        }
        enter(session, job, FAILED, now)
    else:
        enter(session, job, _without_lease(job), now)


def _new_version(job: Job, base: ModelVersion | None, files: tuple[File, ...]) -> NewVersion:
    spec = spec_from_row(job.spec)
    assert not isinstance(spec, EvaluateSpec), f"{job.id} makes no version"
    if isinstance(spec, FineTuneSpec):
        assert base is not None
        origin: dict[str, Any] = {"parent": base.name, "tokenizer_digest": base.tokenizer_digest}
    elif isinstance(spec, ImportModelSpec):
        tokenizer, files = _take_tokenizer(files)
        origin = {"licence": spec.licence, "tokenizer_digest": tokenizer}
    else:
        assert isinstance(spec, PretrainSpec)
        origin = {"licence": spec.licence, "tokenizer_digest": spec.tokenizer_digest}
    return NewVersion(
        model=spec.output_model,
        files=files,
        datasets=spec.datasets,
        source="import" if isinstance(spec, ImportModelSpec) else "job",
        job_id=job.id,
        created_by=job.created_by,
        **origin,
    )


def _take_tokenizer(files: tuple[File, ...]) -> tuple[str, tuple[File, ...]]:
    """The digest of what was imported as the tokenizer, and the other files. Raises InvalidArgument without one."""
    digests = [file.digest for file in files if file.path == TOKENIZER_FILE]
    if not digests:
        raise InvalidArgument(f"an import brings {TOKENIZER_FILE}, and there is none")
    return digests[0], tuple(file for file in files if file.path != TOKENIZER_FILE)


async def _succeed(
    session: AsyncSession, job: Job, version: ModelVersion, measurement: Measurement | None, now: datetime
) -> None:
    """version: that the job has made, or measured."""
    if measurement:
        await add_measurement(session, job, version, suite_of(spec_from_row(job.spec)), measurement, now)
    if job.deploy_alias:
        try:
            await _deploy(session, job, version.name, now)
        except GateRefused as refused:  # what the job was for is done
            say(session, job, now, str(refused))
    enter(session, job, SUCCEEDED, now)


async def _deploy(session: AsyncSession, job: Job, version: str, now: datetime) -> None:
    """Raises GateRefused, having changed nothing."""
    alias = job.deploy_alias
    change = NewChange(principal=job.created_by, reason=f"made by {job.id}")
    project = (await set_alias(session, alias, version, change, now, JOB)).project
    deployment = {"name": alias, "target": alias, "replicas": 0, "create_time": now, "project": project}
    if await insert_if_absent(session, Deployment, **deployment):
        audit.record(session, now, f"deployment/{alias}", f"{alias} on all workers")


async def reconcile(
    database: Database,
    *,
    wake_again_s: float,
    max_lost_leases: int = MAX_LOST_LEASES,
    clock: Clock = utc_now,
) -> list[str]:
    """End expired leases; wake PENDING jobs again that nobody took. Returns the ids of the jobs it changed."""
    now = clock()
    expired = (Job.state == RUNNING) & (Job.lease_expires <= now)
    queued = exists().where(Wakeup.job_id == Job.id)
    forgotten = (Job.state == PENDING) & (Job.wake_time <= now - timedelta(seconds=wake_again_s)) & ~queued
    async with database.read() as session:
        job_ids = list(await session.scalars(select(Job.id).where(expired | forgotten)))
    for job_id in job_ids:
        async with database.write() as session:
            job = await lock_job(session, job_id)  # it may have moved on since
            if job.state == RUNNING and _expired(job, now):
                lapse(session, job, now, max_lost_leases)
            elif job.state == PENDING:
                wake(session, job, now)
    return job_ids
