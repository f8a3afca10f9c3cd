"""Which inference worker should have which version, and which has it.

A deployment with `replicas` goes to that many live workers, chosen by rendezvous hashing: each worker scores
hash(deployment, worker) and the highest scores win, so a worker that comes or goes moves as little as possible.

When the alias that it follows moves, a deployment rolls over: its workers load the new version beside the one that it
serves, and calls get the old one until all of them have the new one. Then calls get the new one, and the old one is
unloaded. Where a worker cannot load the new one the old one stays.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.auth import current_project
from services.common.errors import AlreadyExists, InvalidArgument, NotFound
from services.registry import audit
from services.registry.aliases import resolve
from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.names import check_name
from services.registry.pages import Page, PageRequest, read_page
from services.registry.projects.scope import check_refers
from services.registry.tables import Alias, Deployment, ModelVersion, Worker

WORKER_STATES = ("LOADING", "READY", "FAILED", "UNLOADING")
MAX_REPLICAS = 10_000
FORGET_AFTER = timedelta(hours=1)  # how long a dead worker's row is kept


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    deployment: Deployment
    version: str  # what the target is now
    serving: str  # what calls get: another one while workers load `version`
    ready_replicas: int
    errors: list[str]


@dataclass(frozen=True, slots=True)
class ReadyWorker:
    worker: Worker
    max_sequence_tokens: int
    load: int


class Deployments:
    def __init__(self, database: Database, *, worker_lease_s: float = 10.0, clock: Clock = utc_now) -> None:
        self._database = database
        self.worker_lease_s = worker_lease_s
        self._clock = clock

    async def create(self, name: str, target: str, replicas: int) -> DeploymentStatus:
        """Deploy `target`; where it is deployed under that name, set the replicas.

        An alias stays an alias (moving it moves the deployment), a model's name becomes its newest version. Raises
        NotFound, InvalidArgument, AlreadyExists for another target.
        """
        check_name("deployment", name)
        if replicas > MAX_REPLICAS:
            raise InvalidArgument(f"replicas={replicas} is out of range; choose 0 (all workers) to {MAX_REPLICAS}")
        async with self._database.write() as session:
            alias = await session.get(Alias, target, with_for_update=True)  # locked: not deleted while it is deployed
            version = await resolve(session, target, held=True)
            target, owner = (target, alias.project) if alias and alias.version else (version.name, version.project)
            values = {"target": target, "replicas": replicas, "project": current_project() or owner}
            created = await insert_if_absent(session, Deployment, name=name, create_time=self._clock(), **values)
            row = await session.get_one(Deployment, name, with_for_update=True, populate_existing=True)
            if row.target != target:
                raise AlreadyExists(
                    f"deployment {name!r} exists with target {row.target!r}, not {target!r}; "
                    "delete it first, or choose another name"
                )
            check_refers("deployment", name, row.project, owner)
            if created or row.replicas != replicas:
                audit.record(session, self._clock(), f"deployment/{name}", f"{target} on {replicas or 'all'} workers")
            row.replicas = replicas
            return await _status(session, row, await _live_workers(session, self._clock()))

    async def list_deployments(self, page: PageRequest) -> Page[DeploymentStatus]:
        async with self._database.read() as session:
            found = await read_page(session, select(Deployment), Deployment.name, page, scope="deployments")
            workers = await _live_workers(session, self._clock())
            statuses = []
            for row in found.rows:
                with suppress(NotFound):  # deleted since, with what it led to
                    statuses.append(await _status(session, row, workers))
            return Page(statuses, found.next_token)

    async def delete(self, name: str) -> None:
        """Raises NotFound."""
        async with self._database.write() as session:
            row = await session.get(Deployment, name)
            if row is None:
                raise NotFound(f"no deployment {name[:200]!r}; `anthesis status` shows what there is")
            await session.delete(row)
            audit.record(session, self._clock(), f"deployment/{name}", "deleted")

    async def heartbeat(
        self, worker_id: str, address: str, device: str, models: list[dict[str, Any]]
    ) -> list[ModelVersion]:
        """Note what a worker has; return all it should have. Raises InvalidArgument."""
        for name, value in (("worker_id", worker_id), ("address", address)):
            if not value:
                raise InvalidArgument(f"{name} is empty; a heartbeat says who is alive and where it is called")
        if unknown := [model["state"] for model in models if model["state"] not in WORKER_STATES]:
            raise InvalidArgument(f"state {unknown[0]!r} of a model is not known; use {', '.join(WORKER_STATES)}")
        async with self._database.write() as session:
            now = self._clock()
            values = {
                "address": address,
                "device": device,
                "models": models,
                "lease_expires": now + timedelta(seconds=self.worker_lease_s),
            }
            if not await insert_if_absent(session, Worker, id=worker_id, **values):
                worker = await session.get_one(Worker, worker_id, with_for_update=True)
                for column, new in values.items():
                    setattr(worker, column, new)
            await session.execute(delete(Worker).where(Worker.lease_expires < now - FORGET_AFTER))
            return await _assign(session, worker_id, now)

    async def route(self, name: str) -> tuple[ModelVersion, list[ReadyWorker]]:
        """The version that calls to `name` get, and the live workers that have it ready, by id.

        An alias whose deployment rolls over leads to the version before, until all workers have the new one. Raises
        NotFound, FailedPrecondition.
        """
        async with self._database.read() as session:
            version = await _served(session, name, await resolve(session, name))
            workers = await _live_workers(session, self._clock())
        ready = [
            ReadyWorker(worker, model["max_sequence_tokens"], model["load"])
            for worker in workers
            for model in _having(worker, version.name, "READY")
        ]
        return version, ready


def chosen(deployment: str, replicas: int, worker_ids: Sequence[str]) -> set[str]:
    """The workers that should have `deployment`; 0 replicas: all of them. Source: Thaler and Ravishankar 1998."""

    def score(worker_id: str) -> bytes:
        return hashlib.sha256(f"{deployment}\0{worker_id}".encode()).digest()

    return set(sorted(worker_ids, key=score, reverse=True)[: replicas or None])


async def _live_workers(session: AsyncSession, now: datetime) -> list[Worker]:
    return list(await session.scalars(select(Worker).where(Worker.lease_expires > now).order_by(Worker.id)))


async def _served(session: AsyncSession, name: str, version: ModelVersion) -> ModelVersion:
    """`version`, which `name` leads to, unless all deployments that follow `name` still serve others."""
    query = select(Deployment.serving).where(Deployment.target == name).order_by(Deployment.name)
    serving = [served for served in await session.scalars(query) if served]
    if not serving or version.name in serving:
        return version
    try:
        return await resolve(session, serving[0])
    except NotFound:  # since deleted, as it could be once another is served
        return version


async def _assign(session: AsyncSession, worker_id: str, now: datetime) -> list[ModelVersion]:
    """What the worker should have. A deployment all of whose workers are ready for its target serves that from now."""
    workers = await _live_workers(session, now)
    assigned: dict[str, ModelVersion] = {}
    for row in await session.scalars(select(Deployment).order_by(Deployment.name)):
        version = await resolve(session, row.target)
        names = chosen(row.name, row.replicas, [worker.id for worker in workers])
        if row.serving != version.name and _may_serve(row, version, workers, names):
            row.serving = version.name
            audit.record(session, now, f"deployment/{row.name}", f"serves {version.name}")
        if worker_id in names:
            assigned[version.name] = version
            if row.serving and row.serving != version.name:
                assigned[row.serving] = await resolve(session, row.serving)
    return list(assigned.values())


def _may_serve(row: Deployment, version: ModelVersion, workers: list[Worker], names: set[str]) -> bool:
    """Whether every worker of the deployment has `version`, or none has what it serves, so that nothing is lost."""
    if row.serving is None or not any(_having(worker, row.serving, "READY") for worker in workers):
        return True
    return all(_having(worker, version.name, "READY") for worker in workers if worker.id in names)


def _having(worker: Worker, version: str, *states: str) -> list[dict[str, Any]]:
    """The worker's own word on `version`, where it has it in one of `states`: one entry, or none."""
    return [model for model in worker.models if model["version"] == version and model["state"] in states]


async def _status(session: AsyncSession, row: Deployment, workers: list[Worker]) -> DeploymentStatus:
    version = (await resolve(session, row.target)).name
    failed = [(worker.id, model["error"]) for worker in workers for model in _having(worker, version, "FAILED")]
    return DeploymentStatus(
        deployment=row,
        version=version,
        serving=row.serving or version,
        ready_replicas=sum(len(_having(worker, version, "READY")) for worker in workers),
        errors=[f"{worker_id}: {error}" for worker_id, error in failed],
    )
