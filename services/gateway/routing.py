"""From a model's name to a worker that serves it."""

import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.common.auth import current_project
from services.common.errors import NotFound, ResourceExhausted, Unavailable
from services.gateway.memo import Memo
from services.gateway.registry_client import RegistryClient, ResolvedModel, Worker

MAX_NAMES = 1000
T = TypeVar("T")
log = logging.getLogger(__name__)


class Router:
    def __init__(self, registry: RegistryClient, *, ttl_s: float) -> None:
        self._registry = registry
        self._resolved = Memo(self._ask, max_size=MAX_NAMES, ttl_s=ttl_s)

    async def resolve(self, name: str) -> ResolvedModel:
        """Where `name` leads for the caller's project, at most `ttl_s` old. Raises NotFound."""
        return await self._resolved.get((current_project(), name))

    async def _ask(self, project_and_name: tuple[str, str]) -> ResolvedModel:
        return await self._registry.resolve(project_and_name[1])

    async def call(self, model: ResolvedModel, use: Callable[[Worker], Awaitable[T]]) -> T:
        """`use` the least loaded worker; another one where it fails as if the worker, not the request, were at fault.

        Raises Unavailable when no worker has the version.
        """
        first, *others = _least_loaded_first(model)
        for other in others:
            try:
                return await _use(first, use)
            except (Unavailable, NotFound, ResourceExhausted) as error:  # down, has just unloaded it, or is full
                log.warning("%s; trying worker %s", error, other.id)
                first = other
        return await _use(first, use)


async def _use(worker: Worker, use: Callable[[Worker], Awaitable[T]]) -> T:
    worker.load += 1  # the registry's figure is as of the last heartbeat: requests in between spread as well
    return await use(worker)


def _least_loaded_first(model: ResolvedModel) -> list[Worker]:
    if not model.workers:
        raise Unavailable(
            f"version {model.version} is not loaded by any worker; "
            f"deploy it (`anthesis deploy {model.version}`, or the playground's Models page); "
            "if it is deployed, it is being loaded: try again in a few seconds"
        )
    return sorted(model.workers, key=lambda worker: (worker.load, random.random()))
