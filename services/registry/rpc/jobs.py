"""JobService: messages in and out."""

from collections.abc import AsyncIterator
from typing import Any

from anthesis.v1 import job_pb2 as pb
from anthesis.v1 import job_pb2_grpc

from services.common.auth import current_principal
from services.registry.database import utc_now
from services.registry.jobs import Jobs, NewJob
from services.registry.leases import Leases
from services.registry.reproduction import NewReproduction, Reproductions
from services.registry.rpc import messages, queries

Context = Any


class JobRpc(job_pb2_grpc.JobServiceServicer):
    def __init__(self, jobs: Jobs, leases: Leases, reproductions: Reproductions) -> None:
        self._jobs = jobs
        self._reproductions = reproductions
        self._leases = leases

    async def CreateJob(self, request: pb.CreateJobRequest, context: Context) -> pb.CreateJobResponse:
        new = NewJob(
            spec=messages.job_spec(request),
            created_by=current_principal().name,
            deploy_alias=request.deploy_alias,
            idempotency_key=request.idempotency_key,
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

    async def AcquireLease(self, request: pb.AcquireLeaseRequest, context: Context) -> pb.AcquireLeaseResponse:
        acquired = await self._leases.acquire(request.job_id, request.worker_id)
        return pb.AcquireLeaseResponse(
            job=messages.job(acquired.job),
            lease=pb.Lease(fencing_token=acquired.job.fencing_token, ttl_seconds=max(1, round(acquired.ttl_s))),
            datasets=map(messages.dataset, acquired.datasets),
            base=messages.version(acquired.base) if acquired.base else None,
            deploy_alias=acquired.job.deploy_alias,
        )

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Context) -> pb.RenewLeaseResponse:
        progress = messages.read_progress(request.progress, utc_now())
        job = await self._leases.renew(request.job_id, request.fencing_token, progress, request.messages)
        return pb.RenewLeaseResponse(cancel_requested=job.cancel_requested)

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
