"""Jobs: training, and measuring what was trained."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Unpack

import grpc

from anthesis.errors import CancelledError, UnavailableError
from anthesis.queries import JobQuery, fields
from anthesis.rpc import PAGE_SIZE, pages, stream, unary
from anthesis.v1 import job_pb2 as pb
from anthesis.v1.job_pb2_grpc import JobServiceStub

LOG_POLL_S = 1.0
Spec = (
    pb.PretrainSpec
    | pb.FineTuneSpec
    | pb.EvaluateSpec
    | pb.ValidateDatasetSpec
    | pb.TrainTokenizerSpec
    | pb.CleanCorpusSpec
    | pb.ImportModelSpec
)
_FIELDS = {field.message_type: field.name for field in pb.Job.DESCRIPTOR.oneofs_by_name["spec"].fields}
ENDED = frozenset({pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED})


class Jobs:
    """Submits, watches, pauses and cancels jobs."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = JobServiceStub(channel)

    async def create(
        self,
        spec: Spec,
        *,
        deploy_alias: str = "",
        idempotency_key: str | None = None,
        priority: "pb.JobPriority.ValueType" = pb.JOB_PRIORITY_NORMAL,
    ) -> pb.Job:
        """Submit a job; the same `idempotency_key` gives the same job. With `deploy_alias` its version is deployed.

        Raises InvalidArgumentError, naming the parameter and its range.
        """
        key = idempotency_key or uuid.uuid4().hex
        kind = _FIELDS[spec.DESCRIPTOR]
        request = pb.CreateJobRequest(deploy_alias=deploy_alias, idempotency_key=key, priority=priority)
        getattr(request, kind).CopyFrom(spec)
        return (await unary(self._stub.CreateJob(request))).job

    async def reproduce(
        self,
        version: str,
        *,
        output_model: str = "",
        changes: pb.TrainOptions | None = None,
        idempotency_key: str | None = None,
    ) -> pb.Job:
        """Submit the job that made a version once more, with `changes`; `output_model` receives what it makes.

        Raises FailedPreconditionError where the version has no training.json, or what it names is gone.
        """
        request = pb.ReproduceVersionRequest(
            version=version,
            output_model=output_model,
            changes=changes,
            idempotency_key=idempotency_key or uuid.uuid4().hex,
        )
        return (await unary(self._stub.ReproduceVersion(request))).job

    async def get(self, job_id: str) -> pb.Job:
        """Raises NotFoundError."""
        return (await unary(self._stub.GetJob(pb.GetJobRequest(id=job_id)))).job

    async def list(
        self, state: "pb.JobState.ValueType" = pb.JOB_STATE_UNSPECIFIED, **query: Unpack[JobQuery]
    ) -> Sequence[pb.Job]:
        """Jobs, newest first unless `query` says otherwise; of one state if given. Raises InvalidArgumentError."""
        request = pb.ListJobsRequest(page_size=PAGE_SIZE, state=state, **fields(query))
        return [job async for page in pages(self._stub.ListJobs, request) for job in page.jobs]

    async def cancel(self, job_id: str) -> pb.Job:
        """Ask a job to end. Raises FailedPreconditionError when it has ended."""
        return (await unary(self._stub.CancelJob(pb.CancelJobRequest(id=job_id)))).job

    async def pause(self, job_id: str) -> pb.Job:
        """Have a job wait until it is resumed; one that runs stops with a checkpoint first. Raises
        FailedPreconditionError when it has ended, or is paused already.
        """
        return (await unary(self._stub.PauseJob(pb.PauseJobRequest(id=job_id)))).job

    async def resume(self, job_id: str) -> pb.Job:
        """Let a paused job go on from its checkpoint. Raises FailedPreconditionError when nobody has paused it."""
        return (await unary(self._stub.ResumeJob(pb.ResumeJobRequest(id=job_id)))).job

    async def logs(
        self, job_id: str, *, tail: int = 0, follow: bool = False, patience_s: float = 300.0
    ) -> AsyncGenerator[str, None]:
        """Yield the lines that the job's processes printed: all that are kept, or the last `tail` (1000 at most).

        With `follow` then new ones as they come, until the job ends, over restarts of the registry as `watch` does.
        """
        request = pb.ReadJobLogsRequest(id=job_id, tail_lines=tail)
        last_seen = time.monotonic()
        while True:
            try:
                page = await unary(self._stub.ReadJobLogs(request))
            except UnavailableError:
                if not follow or time.monotonic() - last_seen > patience_s:
                    raise
                await asyncio.sleep(LOG_POLL_S)
                continue
            last_seen = time.monotonic()
            for line in page.lines:
                yield line
            if not page.next_page_token:
                if page.job_ended or not follow:
                    return
                await asyncio.sleep(LOG_POLL_S)
            request = pb.ReadJobLogsRequest(id=job_id, page_token=page.cursor)

    async def watch(
        self, job_id: str, *, after_sequence: int = 0, patience_s: float = 300.0
    ) -> AsyncGenerator[pb.JobEvent, None]:
        """Yield the events after a cursor, then new ones as they come, until the job ends.

        A watch outlives the registry: it goes on from its cursor, and gives up with UnavailableError only when the
        registry has been away for `patience_s` seconds.
        """
        last_seen, wait_s = time.monotonic(), 0.1
        while True:
            request = pb.WatchJobRequest(id=job_id, after_sequence=after_sequence)
            try:
                async with stream(self._stub.WatchJob(request)) as responses:
                    async for response in responses:
                        after_sequence = response.event.sequence
                        yield response.event
                        last_seen, wait_s = time.monotonic(), 0.1
                return
            except (UnavailableError, CancelledError):  # a draining server cancels what it streams
                if time.monotonic() - last_seen > patience_s:
                    raise
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, 2.0)

    async def wait(self, job_id: str, *, patience_s: float = 300.0) -> pb.Job:
        """The job, once it has ended: SUCCEEDED, FAILED (see its `error`) or CANCELLED."""
        async for _ in self.watch(job_id, patience_s=patience_s):
            pass
        return await self.get(job_id)
