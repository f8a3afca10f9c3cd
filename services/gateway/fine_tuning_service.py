"""OpenAI's files and fine-tuning jobs over the registry. Callers see their own; admins see all."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, TypeVar

from services.common.access import Permission
from services.common.auth import Principal
from services.common.errors import InvalidArgument, NotFound
from services.gateway.fine_tuning import Asked, Event, File, Job, NewFile, NewJob, NoSuchObject
from services.gateway.fine_tuning_client import CallersRegistry
from services.gateway.generation import InvalidParameter
from services.gateway.hyperparameters import Hyperparameters, choose_training
from services.gateway.licence_client import LicenceClient
from services.gateway.routing import Router

FINE_TUNE = "fine-tune"
MAX_BASE = 100  # characters of a base's name in that of what is made of it
T = TypeVar("T")
Listed = tuple[list[T], bool]  # and whether there are more


@dataclass(frozen=True, slots=True)
class Caller:
    principal: Principal
    secret: str = field(repr=False)  # the API key


@dataclass(frozen=True, kw_only=True, slots=True)
class NewFineTuning:
    model: str
    training_file: str
    validation_file: str
    suffix: str
    hyperparameters: Hyperparameters
    seed: int | None
    metadata: dict[str, str]
    idempotency_key: str


class FineTuning:
    def __init__(self, registry_address: str, router: Router, licences: LicenceClient) -> None:
        self._address = registry_address
        self._router = router
        self._licences = licences

    def _as(self, caller: Caller) -> AbstractAsyncContextManager[CallersRegistry]:
        return CallersRegistry.open(self._address, caller.secret)

    async def create_file(
        self, caller: Caller, filename: str, content: BinaryIO, lifetime_s: int | None, idempotency_key: str
    ) -> File:
        """Send `content` to the registry and have its rows checked. Raises InvalidParameter listing bad rows."""
        digest, size = await asyncio.to_thread(_digest, content)
        new = NewFile(
            filename=filename,
            digest=digest,
            purpose=FINE_TUNE,
            lifetime_s=lifetime_s,
            idempotency_key=_scoped("files", idempotency_key),
        )
        async with self._as(caller) as registry:
            await registry.upload(content, digest, size)
            with _as_parameter("file"):
                return await registry.create_file(new)

    async def list_files(
        self, caller: Caller, purpose: str, after: str, limit: int, *, oldest_first: bool
    ) -> Listed[File]:
        async with self._as(caller) as registry:
            return await _take(registry.files(purpose, after, oldest_first=oldest_first), limit)

    async def get_file(self, caller: Caller, file_id: str) -> File:
        """Raises NoSuchObject."""
        async with self._as(caller) as registry:
            with _as_no_such("id"):
                return await registry.get_file(file_id)

    async def read_file(self, caller: Caller, file: File) -> AsyncGenerator[bytes, None]:
        async with self._as(caller) as registry, aclosing(registry.download(file.digest)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def delete_file(self, caller: Caller, file_id: str) -> None:
        """Raises NoSuchObject."""
        async with self._as(caller) as registry:
            with _as_no_such("id"):
                await registry.delete_file(file_id)

    async def create_job(self, caller: Caller, new: NewFineTuning) -> Job:
        """Make datasets of the files, which are there already as artifacts, and submit a job that deploys its model.

        Raises NotFound for the model, LicenceNotAccepted, InvalidParameter.
        """
        base = (await self._router.resolve(new.model)).version
        await self._licences.require_acceptance(caller.principal, base)
        async with self._as(caller) as registry:
            training = await _rows(registry, "training_file", new.training_file)
            if new.validation_file:
                validation = await _rows(registry, "validation_file", new.validation_file)
                if validation.digest == training.digest:
                    message = "validation_file has the rows of training_file, so it validates nothing; hold some out"
                    raise InvalidParameter("validation_file", message)
                await registry.create_dataset(validation)
            await registry.create_dataset(training)
            job = NewJob(
                base=base,
                output_model=model_name(base, new.suffix, secrets.token_hex(6)),
                asked=Asked(
                    model=new.model,
                    training_file=new.training_file,
                    validation_file=new.validation_file,
                    suffix=new.suffix,
                    learning_rate_multiplier=new.hyperparameters.multiplier,
                    metadata=new.metadata,
                ),
                training=choose_training(new.hyperparameters, training, new.seed),
                idempotency_key=_scoped("jobs", new.idempotency_key),
            )
            return await registry.create_job(job)

    async def list_jobs(self, caller: Caller, after: str, limit: int, metadata: dict[str, str]) -> Listed[Job]:
        """Newest first, with all of `metadata` among theirs."""
        everyone = Permission.ADMIN in caller.principal.rights
        async with self._as(caller) as registry:
            jobs = registry.jobs("" if everyone else caller.principal.name, after)
            return await _take((job async for job in jobs if _has(job, metadata)), limit)

    async def get_job(self, caller: Caller, job_id: str) -> Job:
        """Raises NoSuchObject."""
        async with self._as(caller) as registry:
            return await _own(registry, caller, job_id)

    async def cancel_job(self, caller: Caller, job_id: str) -> Job:
        """Again it changes nothing. Raises NoSuchObject, FailedPrecondition for one that has ended."""
        async with self._as(caller) as registry:
            job = await _own(registry, caller, job_id)
            return job if job.cancel_requested and job.ended_s is None else await registry.cancel_job(job_id)

    async def list_events(
        self, caller: Caller, job_id: str, before: int | None, limit: int
    ) -> tuple[Job, Listed[Event]]:
        """Newest first. before: a sequence. Raises NoSuchObject."""
        async with self._as(caller) as registry:
            job = await _own(registry, caller, job_id)
            last = job.last_sequence if before is None else min(before - 1, job.last_sequence)
            first = max(1, last - limit + 1)
            events = await registry.events(job_id, first, last) if last >= first else []
        return job, (events[::-1], first > 1)


def model_name(base: str, suffix: str, number: str) -> str:
    """Of the model and of its alias: "ft.bloom-560m.tales.8f3a61c20b7d".

    OpenAI's, with dots for colons, which no name here has: names are parts of paths.
    """
    plain = base.rpartition("@")[0].rpartition("/")[2][:MAX_BASE]
    return ".".join(filter(None, ("ft", plain, suffix, number)))


async def _own(registry: CallersRegistry, caller: Caller, job_id: str) -> Job:
    """Raises NoSuchObject for another's, and for one that OpenAI's API did not submit."""
    with _as_no_such("fine_tuning_job_id", "fine_tune_not_found"):
        job = await registry.get_job(job_id)
        mine = job.created_by == caller.principal.name or Permission.ADMIN in caller.principal.rights
        if not job.asked or not mine:
            raise NotFound(f"no fine-tuning job {job_id[:200]!r}; GET /v1/fine_tuning/jobs lists yours")
    return job


async def _rows(registry: CallersRegistry, param: str, file_id: str) -> File:
    """A file of rows to learn from. Raises InvalidParameter."""
    try:
        file = await registry.get_file(file_id)
    except NotFound:
        message = f"{param}={file_id[:100]!r} is no file of yours; POST /v1/files uploads one"
        raise InvalidParameter(param, message, "file_not_found") from None
    if file.purpose != FINE_TUNE:
        message = f"{param}={file_id!r} has the purpose {file.purpose!r}; upload one with {FINE_TUNE!r}"
        raise InvalidParameter(param, message, "invalid_file_purpose")
    return file


def _has(job: Job, metadata: dict[str, str]) -> bool:
    return job.asked is not None and metadata.items() <= job.asked.metadata.items()


async def _take(items: AsyncIterator[T], limit: int) -> Listed[T]:
    found: list[T] = []
    async for item in items:
        if len(found) == limit:
            return found, True
        found.append(item)
    return found, False


def _digest(content: BinaryIO) -> tuple[str, int]:
    """sha256 and bytes. Blocking."""
    content.seek(0)
    sha256 = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type, unused-ignore]
    return f"sha256:{sha256}", content.tell()


def _scoped(what: str, idempotency_key: str) -> str:
    """A key of ours for one that a client chose, of any length; "" where it chose none."""
    if not idempotency_key:
        return ""
    return f"openai-{what}-{hashlib.sha256(idempotency_key.encode()).hexdigest()}"


@contextmanager
def _as_no_such(param: str, code: str | None = None) -> Iterator[None]:
    try:
        yield
    except NotFound as error:
        raise NoSuchObject(str(error), param, code) from None


@contextmanager
def _as_parameter(param: str) -> Iterator[None]:
    try:
        yield
    except InvalidArgument as error:
        raise InvalidParameter(param, str(error), "invalid_file") from None
