"""JobService: messages in and out."""

from collections.abc import AsyncIterator
from typing import Any

from anthesis.v1 import job_pb2 as pb
from anthesis.v1 import job_pb2_grpc

from services.common.auth import current_principal
from services.common.errors import InvalidArgument
from services.registry.database import utc_now
from services.registry.job_control import JobControl
from services.registry.job_logs import JobLogs
from services.registry.jobs import Jobs, NewJob
from services.registry.leases import Leases, Printed
from services.registry.reproduction import NewReproduction, Reproductions
from services.registry.rpc import evaluations, messages, queries

Context = Any


class JobRpc(job_pb2_grpc.JobServiceServicer):
    def __init__(
        self, jobs: Jobs, leases: Leases, reproductions: Reproductions, control: JobControl, logs: JobLogs
    ) -> None:
        self._jobs = jobs
        self._control = control
        self._logs = logs
        self._reproductions = reproductions
        self._leases = leases

    async def CreateJob(self, request: pb.CreateJobRequest, context: Context) -> pb.CreateJobResponse:
        new = NewJob(
            spec=messages.job_spec(request),
            created_by=current_principal().name,
            deploy_alias=request.deploy_alias,
            idempotency_key=request.idempotency_key,
            priority=_priority(request.priority),
            fine_tuning=messages.read_fine_tuning(request),
        )
        return pb.CreateJobResponse(job=messages.job(await self._jobs.create(new)))

    async def ReproduceVersion(
        self, request: pb.ReproduceVersionRequest, context: Context
    ) -> pb.ReproduceVersionResponse:
        new = NewReproduction(
            version=request.version,
            created_by=current_principal().name,
            output_model=request.output_model,
            changes=messages.read_options(request.changes),
            idempotency_key=request.idempotency_key,
        )
        return pb.ReproduceVersionResponse(job=messages.job(await self._reproductions.create(new)))

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        return pb.GetJobResponse(job=messages.job(await self._jobs.get(request.id)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        state = messages.enum_name(pb.JobState, "JOB_STATE_", request.state)
        page = await self._jobs.list_jobs(state, messages.page_request(request), queries.of_jobs(request))
        return pb.ListJobsResponse(jobs=map(messages.job, page.rows), next_page_token=page.next_token)

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> AsyncIterator[pb.WatchJobResponse]:
        async for event in self._jobs.watch(request.id, request.after_sequence):
            yield pb.WatchJobResponse(event=messages.job_event(event))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        return pb.CancelJobResponse(job=messages.job(await self._jobs.cancel(request.id)))

    async def PauseJob(self, request: pb.PauseJobRequest, context: Context) -> pb.PauseJobResponse:
        return pb.PauseJobResponse(job=messages.job(await self._control.pause(request.id)))

    async def ResumeJob(self, request: pb.ResumeJobRequest, context: Context) -> pb.ResumeJobResponse:
        return pb.ResumeJobResponse(job=messages.job(await self._control.resume(request.id)))

    async def ReadJobLogs(self, request: pb.ReadJobLogsRequest, context: Context) -> pb.ReadJobLogsResponse:
        if request.tail_lines and request.page_token:
            raise InvalidArgument("tail_lines and page_token both say where to begin; give one of them")
        if request.tail_lines:
            page = await self._logs.tail(request.id, request.tail_lines)
        else:
            page = await self._logs.read(request.id, request.page_token, request.page_size)
        return pb.ReadJobLogsResponse(
            lines=page.lines,
            next_page_token=str(page.end) if page.more else "",
            cursor=str(page.end),
            job_ended=page.job_ended,
        )

    async def AcquireLease(self, request: pb.AcquireLeaseRequest, context: Context) -> pb.AcquireLeaseResponse:
        acquired = await self._leases.acquire(
            request.job_id, request.worker_id, kinds=request.kinds, but=request.except_job_ids
        )
        return pb.AcquireLeaseResponse(
            job=messages.job(acquired.job),
            lease=pb.Lease(fencing_token=acquired.job.fencing_token, ttl_seconds=max(1, round(acquired.ttl_s))),
            datasets=map(messages.dataset_of_job, acquired.datasets),
            base=messages.version(acquired.base) if acquired.base else None,
            deploy_alias=acquired.job.deploy_alias,
            suite=evaluations.suite(acquired.suite) if acquired.suite else None,
            log_end=acquired.job.log_end,
        )

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Context) -> pb.RenewLeaseResponse:
        progress = messages.read_progress(request.progress, utc_now())
        printed = Printed(request.log_offset, request.log_text)
        energy = messages.read_energy(request.energy) if request.HasField("energy") else None
        job = await self._leases.renew(
            request.job_id, request.fencing_token, progress, request.messages, printed, energy
        )
        return pb.RenewLeaseResponse(cancel_requested=job.cancel_requested, pause_requested=job.pause_requested)

    async def FinishJob(self, request: pb.FinishJobRequest, context: Context) -> pb.FinishJobResponse:
        job = await self._leases.finish(
            request.job_id,
            request.fencing_token,
            messages.outcome(request),
            messages.read_progress(request.progress, utc_now()),
        )
        return pb.FinishJobResponse(job=messages.job(job))

    async def ReleaseLease(self, request: pb.ReleaseLeaseRequest, context: Context) -> pb.ReleaseLeaseResponse:
        await self._leases.release(request.job_id, request.fencing_token, request.reason)
        return pb.ReleaseLeaseResponse()


def _priority(number: int) -> str:
    """NORMAL where nothing is said. A number of no name is nobody's priority, as `queue_time` says."""
    if number == pb.JOB_PRIORITY_UNSPECIFIED:
        return "NORMAL"
    return messages.enum_name(pb.JobPriority, "JOB_PRIORITY_", number) or str(number)
