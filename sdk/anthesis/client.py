"""The client for code without an event loop: `anthesis.aio`, run on one background thread.

Every method has the signature and the documentation of its asynchronous twin; iterators are plain ones.
"""

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from anthesis import aio
from anthesis.aliases import Aliases as AioAliases
from anthesis.artifacts import Artifacts as AioArtifacts
from anthesis.audit import Audit as AioAudit
from anthesis.datasets import Datasets as AioDatasets
from anthesis.deployments import Deployments as AioDeployments
from anthesis.evaluations import Evaluations as AioEvaluations
from anthesis.evaluations import Gates as AioGates
from anthesis.files import Files as AioFiles
from anthesis.jobs import Jobs as AioJobs
from anthesis.keys import Keys as AioKeys
from anthesis.licences import Licences as AioLicences
from anthesis.models import Models as AioModels
from anthesis.projects import Projects as AioProjects
from anthesis.settings import Settings
from anthesis.tokenizers import Tokenizers as AioTokenizers
from anthesis.webhooks import Webhooks as AioWebhooks

Twin = TypeVar("Twin")
P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """One loop for all clients of the process, on a thread that ends with it."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="anthesis-client", daemon=True).start()
    return loop


def _run(coroutine: Coroutine[Any, Any, R]) -> R:
    """Wait for a coroutine; Ctrl-C cancels it."""
    future = asyncio.run_coroutine_threadsafe(coroutine, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


class _Blocking(Generic[Twin]):
    """Holds the asynchronous object whose methods a class below offers."""

    def __init__(self, twin: Twin) -> None:
        self._twin = twin


def _call(
    method: Callable[Concatenate[Twin, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[_Blocking[Twin], P], R]:
    def call(self: _Blocking[Twin], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return _run(method(self._twin, *args, **kwargs))

    functools.update_wrapper(call, method)
    return call


def _iterate(
    method: Callable[Concatenate[Twin, P], AsyncGenerator[R, None]],
) -> Callable[Concatenate[_Blocking[Twin], P], Generator[R, None, None]]:
    def iterate(self: _Blocking[Twin], /, *args: P.args, **kwargs: P.kwargs) -> Generator[R, None, None]:
        items: Any = method(self._twin, *args, **kwargs)
        end: Any = object()
        try:
            while (item := _run(anext(items, end))) is not end:
                yield item
        except (
            GeneratorExit
        ):  # left early: cancel the call. Not waited for: the garbage collector may do this on the loop
            asyncio.run_coroutine_threadsafe(items.aclose(), _loop())
            raise

    functools.update_wrapper(iterate, method)
    return iterate


class Models(_Blocking[AioModels]):
    list = _call(AioModels.list)
    get = _call(AioModels.get)
    create = _call(AioModels.create)
    resolve = _call(AioModels.resolve)
    create_version = _call(AioModels.create_version)
    get_version = _call(AioModels.get_version)
    list_versions = _call(AioModels.list_versions)
    delete_version = _call(AioModels.delete_version)
    undelete_version = _call(AioModels.undelete_version)
    delete = _call(AioModels.delete)
    undelete = _call(AioModels.undelete)
    tag = _call(AioModels.tag)
    card = _call(AioModels.card)
    update_card = _call(AioModels.update_card)
    lineage = _call(AioModels.lineage)
    compare = _iterate(AioModels.compare)


class Aliases(_Blocking[AioAliases]):
    list = _call(AioAliases.list)
    set = _call(AioAliases.set)
    history = _iterate(AioAliases.history)
    resolve = _call(AioAliases.resolve)
    rollback = _call(AioAliases.rollback)
    delete = _call(AioAliases.delete)


class Artifacts(_Blocking[AioArtifacts]):
    get = _call(AioArtifacts.get)
    upload = _call(AioArtifacts.upload)
    upload_bytes = _call(AioArtifacts.upload_bytes)
    list_uploads = _call(AioArtifacts.list_uploads)
    abandon_upload = _call(AioArtifacts.abandon_upload)
    download = _call(AioArtifacts.download)
    read = _call(AioArtifacts.read)
    verify = _iterate(AioArtifacts.verify)
    collect_garbage = _iterate(AioArtifacts.collect_garbage)


class Datasets(_Blocking[AioDatasets]):
    upload = _call(AioDatasets.upload)
    create = _call(AioDatasets.create)
    get = _call(AioDatasets.get)
    list = _call(AioDatasets.list)
    versions = _call(AioDatasets.versions)
    preview = _call(AioDatasets.preview)
    report = _call(AioDatasets.report)


class Files(_Blocking[AioFiles]):
    upload = _call(AioFiles.upload)
    list = _iterate(AioFiles.list)
    get = _call(AioFiles.get)
    download = _call(AioFiles.download)
    delete = _call(AioFiles.delete)


class Jobs(_Blocking[AioJobs]):
    create = _call(AioJobs.create)
    reproduce = _call(AioJobs.reproduce)
    get = _call(AioJobs.get)
    list = _call(AioJobs.list)
    cancel = _call(AioJobs.cancel)
    pause = _call(AioJobs.pause)
    resume = _call(AioJobs.resume)
    logs = _iterate(AioJobs.logs)
    watch = _iterate(AioJobs.watch)
    wait = _call(AioJobs.wait)


class Deployments(_Blocking[AioDeployments]):
    create = _call(AioDeployments.create)
    list = _call(AioDeployments.list)
    delete = _call(AioDeployments.delete)
    wait = _call(AioDeployments.wait)


class Keys(_Blocking[AioKeys]):
    create = _call(AioKeys.create)
    list = _call(AioKeys.list)
    revoke = _call(AioKeys.revoke)


class Audit(_Blocking[AioAudit]):
    list = _iterate(AioAudit.list)


class Licences(_Blocking[AioLicences]):
    list = _call(AioLicences.list)
    get = _call(AioLicences.get)
    create = _call(AioLicences.create)
    accept = _call(AioLicences.accept)
    accepted = _call(AioLicences.accepted)
    missing = _call(AioLicences.missing)


class Evaluations(_Blocking[AioEvaluations]):
    create_suite = _call(AioEvaluations.create_suite)
    create_benchmark = _call(AioEvaluations.create_benchmark)
    create_lm_eval = _call(AioEvaluations.create_lm_eval)
    get_suite = _call(AioEvaluations.get_suite)
    suites = _call(AioEvaluations.suites)
    record = _call(AioEvaluations.record)
    list = _iterate(AioEvaluations.list)
    compare = _call(AioEvaluations.compare)


class Gates(_Blocking[AioGates]):
    set = _call(AioGates.set)
    get = _call(AioGates.get)
    list = _call(AioGates.list)
    delete = _call(AioGates.delete)


class Projects(_Blocking[AioProjects]):
    create = _call(AioProjects.create)
    list = _call(AioProjects.list)
    get = _call(AioProjects.get)
    update = _call(AioProjects.update)
    usage = _iterate(AioProjects.usage)


class Webhooks(_Blocking[AioWebhooks]):
    create = _call(AioWebhooks.create)
    list = _call(AioWebhooks.list)
    delete = _call(AioWebhooks.delete)
    deliveries = _iterate(AioWebhooks.deliveries)
    redeliver = _call(AioWebhooks.redeliver)


class Tokenizers(_Blocking[AioTokenizers]):
    train = _call(AioTokenizers.train)


class Client(_Blocking[aio.AsyncClient]):
    """Every service of the platform. Usable from many threads; close it, or use `with`.

    Calls raise `anthesis.errors.AnthesisError`'s children.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.from_env()
        super().__init__(_run(_open(self.settings)))
        self.models = Models(self._twin.models)
        self.aliases = Aliases(self._twin.aliases)
        self.artifacts = Artifacts(self._twin.artifacts)
        self.datasets = Datasets(self._twin.datasets)
        self.files = Files(self._twin.files)
        self.jobs = Jobs(self._twin.jobs)
        self.deployments = Deployments(self._twin.deployments)
        self.keys = Keys(self._twin.keys)
        self.audit = Audit(self._twin.audit)
        self.licences = Licences(self._twin.licences)
        self.evaluations = Evaluations(self._twin.evaluations)
        self.gates = Gates(self._twin.gates)
        self.projects = Projects(self._twin.projects)
        self.webhooks = Webhooks(self._twin.webhooks)
        self.tokenizers = Tokenizers(self._twin.tokenizers)

    generate = _iterate(aio.AsyncClient.generate)
    choices = _call(aio.AsyncClient.choices)
    complete = _call(aio.AsyncClient.complete)
    embed = _call(aio.AsyncClient.embed)
    tokenize = _call(aio.AsyncClient.tokenize)
    count = _call(aio.AsyncClient.count)
    score = _call(aio.AsyncClient.score)
    worker_status = _call(aio.AsyncClient.worker_status)
    health = _call(aio.AsyncClient.health)
    close = _call(aio.AsyncClient.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _open(settings: Settings) -> aio.AsyncClient:
    return aio.AsyncClient(settings)  # a channel belongs to the loop it is made in
