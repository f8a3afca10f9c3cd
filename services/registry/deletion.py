"""Deleting versions and models: rows stay, so lineage can be told and no number is used again; files go later."""

import json
from datetime import datetime, timedelta

from sqlalchemy import Text, cast, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.errors import AlreadyExists, FailedPrecondition
from services.registry import audit
from services.registry.database import Clock, Database, utc_now
from services.registry.licences.carried import parents_of
from services.registry.tables import DELETED, ENDED, PURGED, READY, Alias, Deployment, Job, Model, ModelVersion
from services.registry.version_states import check_not_deleted, check_ready, lock_model, lock_version

KEPT_S = 30 * 86_400.0
MAX_NAMED = 3  # of each kind that needs a version


class Deletions:
    def __init__(self, database: Database, *, kept_s: float = KEPT_S, clock: Clock = utc_now) -> None:
        self._database = database
        self._kept = timedelta(seconds=kept_s)
        self._clock = clock

    async def delete_version(self, name: str, principal: str) -> ModelVersion:
        """Let `name` ("<model>@<number>") resolve no more.

        Raises FailedPrecondition, naming them, while an alias, a deployment, a child or a job needs it; NotFound.
        """
        async with self._database.write() as session:
            version = check_ready(await lock_version(session, name))
            if needed := await _needed_by(session, version.name):
                raise FailedPrecondition(f"version {name!r} is needed by {', '.join(needed)}; {_REMEDY}")
            version.state, version.delete_time, version.deleted_by = DELETED, self._clock(), principal
            version.expire_time = version.delete_time + self._kept
            await _renew_latest(session, version.model)
            audit.record(session, self._clock(), f"version/{name}", "deleted")
        return version

    async def undelete_version(self, name: str) -> ModelVersion:
        """Bring it back. Raises AlreadyExists, NotFound; FailedPrecondition where its files or what it is of are gone.

        The locks go from child to parent, and to the model last, as in whatever registers a version.
        """
        async with self._database.write() as session:
            version = await lock_version(session, name)
            if version.state == READY:
                raise AlreadyExists(f"version {name!r} is not deleted; use it as it is")
            if version.state == PURGED:
                raise FailedPrecondition(f"the files of version {name!r} are gone; import or train it again")
            for parent in parents_of(version):
                await _check_parent(session, name, parent)
            model = await lock_model(session, version.model)
            if model.delete_time:
                what = f"model {model.name!r} of version {name!r} is deleted"
                raise FailedPrecondition(f"{what}; first `anthesis models undelete {model.name}`")
            version.state, version.delete_time, version.deleted_by, version.expire_time = READY, None, "", None
            await _renew_latest(session, version.model)
            audit.record(session, self._clock(), f"version/{name}", "undeleted")
        return version

    async def delete_model(self, name: str, principal: str) -> Model:
        """Leave a model out of lists. Raises FailedPrecondition while it has a version or a job makes one; NotFound."""
        async with self._database.write() as session:
            model = check_not_deleted(await lock_model(session, name))
            if reason := await _why_kept(session, model):
                raise FailedPrecondition(f"model {name!r} {reason}")
            model.delete_time, model.deleted_by = self._clock(), principal
            audit.record(session, self._clock(), f"model/{name}", "deleted")
        return model

    async def undelete_model(self, name: str) -> Model:
        """Raises AlreadyExists, NotFound."""
        async with self._database.write() as session:
            model = await lock_model(session, name)
            if model.delete_time is None:
                raise AlreadyExists(f"model {name!r} is not deleted; use it as it is")
            model.delete_time, model.deleted_by = None, ""
            audit.record(session, self._clock(), f"model/{name}", "undeleted")
        return model


_REMEDY = (
    "point aliases elsewhere (`anthesis aliases set`, `delete`), `anthesis undeploy`, delete what was made from it, "
    "let jobs end or cancel them, and delete it then"
)


async def _needed_by(session: AsyncSession, name: str) -> list[str]:
    """What would be broken without the locked version, for people."""
    quoted = json.dumps(name)  # as a job's spec, whatever its kind, and a list of parents hold it
    merged = cast(ModelVersion.other_parents, Text).contains(quoted, autoescape=True)
    children = ModelVersion.state == READY, or_(ModelVersion.parent == name, merged)
    unfinished = Job.state.not_in(ENDED), cast(Job.spec, Text).contains(quoted, autoescape=True)
    deployed = or_(Deployment.target == name, Deployment.serving == name)  # the latter: until it has rolled over
    kinds = {
        "alias": select(Alias.name).where(Alias.version == name).order_by(Alias.name),
        "deployment": select(Deployment.name).where(deployed).order_by(Deployment.name),
        "its child": select(ModelVersion.name).where(*children).order_by(ModelVersion.id),
        "job": select(Job.id).where(*unfinished).order_by(Job.id),
    }
    return [
        f"{kind} {found!r}" for kind, query in kinds.items() for found in await session.scalars(query.limit(MAX_NAMED))
    ]


async def _check_parent(session: AsyncSession, name: str, parent: str) -> None:
    query = select(ModelVersion).where(ModelVersion.name == parent).with_for_update(read=True)
    if (await session.scalars(query)).one().state == DELETED:
        what = f"version {name!r} was made from {parent!r}, which is deleted"
        raise FailedPrecondition(f"{what}; first `anthesis models undelete {parent}`")


async def _why_kept(session: AsyncSession, model: Model) -> str:
    """Why the locked model cannot be deleted; "" where it can."""
    if model.in_catalogue:
        return "is of the built-in catalogue, which stays; delete its versions alone"
    ready = select(ModelVersion.name).where(ModelVersion.model == model.name, ModelVersion.state == READY)
    if names := list(await session.scalars(ready.order_by(ModelVersion.id).limit(MAX_NAMED))):
        return f"has version {', '.join(map(repr, names))}; first `anthesis models delete {names[0]}`"
    making = select(Job.id).where(Job.output_model == model.name, Job.state.not_in(ENDED))
    if job := await session.scalar(making.limit(1)):
        return f"gets a version by job {job!r}; let it end, or first `anthesis jobs cancel {job}`"
    return ""


async def _renew_latest(session: AsyncSession, model_name: str) -> None:
    """A model's newest version is the newest that is READY."""
    model = await lock_model(session, model_name)
    ready = select(func.max(ModelVersion.number)).where(ModelVersion.model == model_name, ModelVersion.state == READY)
    model.latest_version = await session.scalar(ready) or 0


async def purge_expired(session: AsyncSession, now: datetime) -> None:
    """Let go of the files of versions that were deleted long enough ago. Call it within `references.exclude`."""
    expired = select(ModelVersion).where(ModelVersion.state == DELETED, ModelVersion.expire_time <= now)
    for version in await session.scalars(expired.with_for_update()):
        version.files, version.size_bytes, version.state = [], 0, PURGED
        audit.record(session, now, f"version/{version.name}", "purged")
