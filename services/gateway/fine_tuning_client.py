"""Files and fine-tuning jobs in the registry, asked for with the caller's own key: it knows whose they are."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import BinaryIO, TypeVar

import grpc
from anthesis.channel import open_aio_channel
from anthesis.v1 import file_pb2, file_pb2_grpc, job_pb2, job_pb2_grpc, registry_pb2_grpc
from anthesis.v1 import registry_pb2 as pb

from services.gateway.fine_tuning import Asked, Event, File, Job, JobError, NewFile, NewJob, Step
from services.gateway.upstream import upstream

TIMEOUT_S = 30.0
CHECK_TIMEOUT_S = 600.0  # of calls that read every row
CHUNK_BYTES = 1 << 20  # the most one message may carry
PAGE_SIZE = 200
T = TypeVar("T")


class CallersRegistry:
    """The registry as one caller sees it. Raises what `upstream` does."""

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        self._name = f"the registry at {address}"
        self._registry: registry_pb2_grpc.RegistryServiceAsyncStub = registry_pb2_grpc.RegistryServiceStub(channel)
        self._files: file_pb2_grpc.FileServiceAsyncStub = file_pb2_grpc.FileServiceStub(channel)
        self._jobs: job_pb2_grpc.JobServiceAsyncStub = job_pb2_grpc.JobServiceStub(channel)

    @classmethod
    @asynccontextmanager
    async def open(cls, address: str, secret: str) -> AsyncIterator["CallersRegistry"]:
        """With the caller's API key."""
        async with open_aio_channel(address, secret) as channel:
            yield cls(channel, address)

    async def _ask(self, call: Awaitable[T]) -> T:
        with upstream(self._name, callers_key=True):
            return await call

    async def upload(self, file: BinaryIO, digest: str, size_bytes: int) -> None:
        """Store `file` as an artifact, in chunks."""
        begin = pb.BeginUploadRequest(digest=digest, size_bytes=size_bytes)
        begun = await self._ask(self._registry.BeginUpload(begin, timeout=TIMEOUT_S))
        if not begun.exists:
            file.seek(begun.offset_bytes)
            header = pb.UploadHeader(
                digest=digest, size_bytes=size_bytes, upload_id=begun.upload_id, offset_bytes=begun.offset_bytes
            )
            await self._ask(self._registry.UploadArtifact(_parts(file, header)))

    async def download(self, digest: str) -> AsyncGenerator[bytes, None]:
        call = self._registry.DownloadArtifact(pb.DownloadArtifactRequest(digest=digest))
        try:
            with upstream(self._name, callers_key=True):
                async for part in call:
                    yield part.data
        finally:
            call.cancel()

    async def create_file(self, new: NewFile) -> File:
        request = file_pb2.CreateFileRequest(
            filename=new.filename, purpose=new.purpose, digest=new.digest, idempotency_key=new.idempotency_key
        )
        if new.lifetime_s is not None:
            request.lifetime_seconds = new.lifetime_s
        return _file((await self._ask(self._files.CreateFile(request, timeout=CHECK_TIMEOUT_S))).file)

    async def get_file(self, file_id: str) -> File:
        request = file_pb2.GetFileRequest(id=file_id)
        return _file((await self._ask(self._files.GetFile(request, timeout=TIMEOUT_S))).file)

    async def files(self, purpose: str, after: str, *, oldest_first: bool) -> AsyncGenerator[File, None]:
        request = file_pb2.ListFilesRequest(
            page_size=PAGE_SIZE, purpose=purpose, after=after, oldest_first=oldest_first
        )
        while True:
            page = await self._ask(self._files.ListFiles(request, timeout=TIMEOUT_S))
            for file in page.files:
                yield _file(file)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    async def delete_file(self, file_id: str) -> None:
        await self._ask(self._files.DeleteFile(file_pb2.DeleteFileRequest(id=file_id), timeout=TIMEOUT_S))

    async def create_dataset(self, file: File) -> None:
        """A dataset of the file's name and rows, unless there is one."""
        form = pb.DatasetFormat.Value(f"DATASET_FORMAT_{file.format}")
        request = pb.CreateDatasetRequest(name=file.id, digest=file.digest, format=form)
        await self._ask(self._registry.CreateDataset(request, timeout=CHECK_TIMEOUT_S))

    async def create_job(self, new: NewJob) -> Job:
        asked, training = new.asked, new.training
        request = job_pb2.CreateJobRequest(
            fine_tune=job_pb2.FineTuneSpec(
                output_model=new.output_model,
                base=new.base,
                datasets=[asked.training_file],
                validation_datasets=[asked.validation_file] if asked.validation_file else [],
                options=job_pb2.TrainOptions(
                    epochs=training.epochs,
                    micro_batch=training.micro_batch,
                    gradient_accumulation=training.gradient_accumulation,
                    learning_rate=training.learning_rate,
                    sequence_length=training.sequence_length,
                    seed=training.seed,
                ),
                lora=job_pb2.LoraOptions(),
            ),
            deploy_alias=new.output_model,
            idempotency_key=new.idempotency_key,
            fine_tuning=job_pb2.FineTuning(
                model=asked.model,
                training_file=asked.training_file,
                validation_file=asked.validation_file,
                suffix=asked.suffix,
                learning_rate_multiplier=asked.learning_rate_multiplier,
                metadata=asked.metadata,
            ),
        )
        return _job((await self._ask(self._jobs.CreateJob(request, timeout=TIMEOUT_S))).job)

    async def get_job(self, job_id: str) -> Job:
        return _job((await self._ask(self._jobs.GetJob(job_pb2.GetJobRequest(id=job_id), timeout=TIMEOUT_S))).job)

    async def jobs(self, created_by: str, after: str) -> AsyncGenerator[Job, None]:
        """Those of OpenAI's API, newest first. created_by: "" for anybody's."""
        request = job_pb2.ListJobsRequest(page_size=PAGE_SIZE, fine_tuning=True, created_by=created_by, after=after)
        while True:
            page = await self._ask(self._jobs.ListJobs(request, timeout=TIMEOUT_S))
            for job in page.jobs:
                yield _job(job)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    async def cancel_job(self, job_id: str) -> Job:
        return _job((await self._ask(self._jobs.CancelJob(job_pb2.CancelJobRequest(id=job_id), timeout=TIMEOUT_S))).job)

    async def events(self, job_id: str, first: int, last: int) -> list[Event]:
        """Events `first` to `last`, which have happened, in their order."""
        call = self._jobs.WatchJob(job_pb2.WatchJobRequest(id=job_id, after_sequence=first - 1), timeout=TIMEOUT_S)
        found: list[Event] = []
        with upstream(self._name, callers_key=True):
            async for response in call:
                found.append(_event(response.event))
                if response.event.sequence >= last:
                    break
        call.cancel()
        return found


async def _parts(file: BinaryIO, header: pb.UploadHeader) -> AsyncIterator[pb.UploadArtifactRequest]:
    yield pb.UploadArtifactRequest(header=header)
    while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield pb.UploadArtifactRequest(data=chunk)


def _file(message: file_pb2.File) -> File:
    return File(
        id=message.id,
        filename=message.filename,
        purpose=message.purpose,
        digest=message.digest,
        size_bytes=message.size_bytes,
        format=pb.DatasetFormat.Name(message.format).removeprefix("DATASET_FORMAT_"),
        num_rows=message.num_rows,
        longest_row_bytes=message.longest_row_bytes,
        created_s=message.create_time.seconds,
        expires_s=message.expire_time.seconds if message.HasField("expire_time") else None,
    )


def _job(message: job_pb2.Job) -> Job:
    options = message.fine_tune.options
    return Job(
        id=message.id,
        created_by=message.created_by,
        state=_state(message.state),
        cancel_requested=message.cancel_requested,
        created_s=message.create_time.seconds,
        ended_s=message.end_time.seconds if message.HasField("end_time") else None,
        asked=_asked(message.fine_tuning) if message.HasField("fine_tuning") else None,
        n_epochs=round(options.epochs),
        batch_size=options.micro_batch * options.gradient_accumulation,
        seed=options.seed,
        output_model=message.fine_tune.output_model,
        version=message.model_version,
        error=_error(message.error) if message.HasField("error") else None,
        last=_step(message.progress) if message.HasField("progress") else None,
        last_sequence=message.last_sequence,
    )


def _error(message: job_pb2.JobError) -> JobError:
    return JobError(code=message.code, message=message.message, parameter=message.parameter)


def _asked(message: job_pb2.FineTuning) -> Asked:
    return Asked(
        model=message.model,
        training_file=message.training_file,
        validation_file=message.validation_file,
        suffix=message.suffix,
        learning_rate_multiplier=message.learning_rate_multiplier,
        metadata=dict(message.metadata),
    )


def _state(number: "job_pb2.JobState.ValueType") -> str:
    """ "RUNNING"."""
    return job_pb2.JobState.Name(number).removeprefix("JOB_STATE_")


def _step(message: job_pb2.TrainingProgress) -> Step:
    num_bytes = sum(loss.num_bytes for loss in message.validation)
    return Step(
        step=message.step,
        total_steps=message.total_steps,
        loss=message.loss,
        learning_rate=message.learning_rate,
        grad_norm=message.grad_norm,
        tokens_seen=message.tokens_seen,
        seconds_left=message.seconds_left,
        time_s=message.time.ToNanoseconds() / 1e9,
        bits_per_byte=(
            sum(loss.bits_per_byte * loss.num_bytes for loss in message.validation) / num_bytes if num_bytes else None
        ),
    )


def _event(message: job_pb2.JobEvent) -> Event:
    kind = message.WhichOneof("event")
    return Event(
        sequence=message.sequence,
        time_s=message.time.seconds,
        state=_state(message.state) if kind == "state" else "",
        step=_step(message.progress) if kind == "progress" else None,
        message=message.message if kind == "message" else "",
    )
