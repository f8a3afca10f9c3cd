"""Many callers at once, and several processes on one database."""

import asyncio

import grpc
from anthesis.v1 import job_pb2, job_pb2_grpc, registry_pb2_grpc
from anthesis.v1 import registry_pb2 as pb

from services.registry.database import Database
from services.registry.leases import reconcile
from tests.support.registry_data import store_checkpoint, text_rows

NUM_CALLERS, NUM_JOBS = 8, 3


async def call(function, request):
    """None when it was ABORTED: another caller was faster. Anything else is a failure."""
    try:
        return await function(request, timeout=30)
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.ABORTED:
            raise
        return None


async def test_callers_and_a_second_process_share_one_database_without_errors(registry):
    models = registry_pb2_grpc.RegistryServiceStub(registry.channel())
    digest = registry.artifacts.write_bytes(text_rows())
    await models.CreateDataset(pb.CreateDatasetRequest(name="udhr", format=pb.DATASET_FORMAT_TEXT, digest=digest))
    stored = store_checkpoint(registry.artifacts)
    files = [pb.ModelFile(path=file.path, digest=file.digest) for file in stored.files]
    spec = job_pb2.PretrainSpec(
        output_model="sprout",
        tokenizer_digest=stored.tokenizer_digest,
        datasets=["udhr"],
        config='{"model_type": "bloom", "hidden_size": 12, "n_layer": 2, "n_head": 3, "vocab_size": 300}',
        options=job_pb2.TrainOptions(steps=1),
    )
    callers_done = asyncio.Event()

    async def caller(number):
        """Submits jobs and runs to the end whatever job it gets, among others that want the same."""
        jobs = job_pb2_grpc.JobServiceStub(registry.channel())
        for _ in range(NUM_JOBS):
            job_id = (await jobs.CreateJob(job_pb2.CreateJobRequest(pretrain=spec))).job.id
            pending = await jobs.ListJobs(job_pb2.ListJobsRequest(state=job_pb2.JOB_STATE_PENDING))
            for job in [*pending.jobs, job_pb2.Job(id=job_id)]:
                await work(jobs, job.id, f"t{number}")
            beat = pb.HeartbeatWorkerRequest(worker_id=f"w{number}", address="a:1", device="cpu")
            await models.HeartbeatWorker(beat)

    async def work(jobs, job_id, worker):
        acquire = job_pb2.AcquireLeaseRequest(job_id=job_id, worker_id=worker)
        try:
            lease = await call(jobs.AcquireLease, acquire)
        except grpc.aio.AioRpcError as error:
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION  # noqa: PT017 (another caller ended it)
            return
        if lease:
            token = lease.lease.fencing_token
            await call(jobs.RenewLease, job_pb2.RenewLeaseRequest(job_id=job_id, fencing_token=token, messages=["hi"]))
            succeeded = job_pb2.ModelFiles(files=files)
            finish = job_pb2.FinishJobRequest(job_id=job_id, fencing_token=token, succeeded=succeeded)
            assert (await call(jobs.FinishJob, finish)).job.state == job_pb2.JOB_STATE_SUCCEEDED

    async def relay():
        """What the relay's process does to the database, on connections of its own."""
        database = Database(registry.platform.database_url)
        while not callers_done.is_set():
            await reconcile(database, wake_again_s=0.0)
            await asyncio.sleep(0.01)
        await database.close()

    reconciling = asyncio.create_task(relay())
    await asyncio.gather(*(caller(number) for number in range(NUM_CALLERS)))
    callers_done.set()
    await reconciling
    listed = await models.ListModelVersions(pb.ListModelVersionsRequest(model="sprout", page_size=200))
    numbers = sorted(version.number for version in listed.versions)
    assert numbers == list(range(1, NUM_CALLERS * NUM_JOBS + 1))
    assert len({version.job_id for version in listed.versions}) == len(numbers)
