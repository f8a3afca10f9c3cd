"""A version is READY, DELETED (it can be brought back) or PURGED (its files are gone, its row stays).

Whoever writes a reference to a version calls `hold` in the transaction that writes it, and who deletes it locks it,
then looks for references (deletion.py). So of a move and a deletion at once one wins: either the deletion sees the
reference, or `hold` that the version is deleted. What a version is made of is changed by nobody: triggers refuse it.
"""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.errors import FailedPrecondition, NotFound
from services.registry.tables import PURGED, READY, Model, ModelVersion


async def hold(session: AsyncSession, name: str) -> ModelVersion:
    """The version called `name`, which nobody deletes until the writing transaction ends. Raises NotFound."""
    query = select(ModelVersion).where(ModelVersion.name == name).with_for_update(read=True)
    version = await session.scalar(query.execution_options(populate_existing=True))
    if version is None:
        raise no_version(name)
    return check_ready(version)


async def lock_version(session: AsyncSession, name: str) -> ModelVersion:
    """The version's row, nobody else's to refer to or change until the transaction ends. Raises NotFound."""
    query = select(ModelVersion).where(ModelVersion.name == name).with_for_update()
    version = await session.scalar(query.execution_options(populate_existing=True))
    if version is None:
        raise no_version(name)
    return version


async def lock_model(session: AsyncSession, name: str) -> Model:
    """The same of a model's row."""
    model = await session.get(Model, name, with_for_update=True, populate_existing=True)
    if model is None:
        raise no_model(name)
    return model


async def hold_model(session: AsyncSession, name: str) -> Model | None:
    """The model of that name, if there is one, which nobody deletes until the transaction ends.

    Raises FailedPrecondition for a deleted one. Not before `ensure_model`, which asks for more.
    """
    model = await session.get(Model, name, with_for_update={"read": True}, populate_existing=True)
    if model:
        check_can_grow(model)
    return model


def check_ready(version: ModelVersion) -> ModelVersion:
    """Return `version`; raise NotFound, saying who deleted it and what to do, unless it is READY."""
    if version.state == READY:
        return version
    deleted = f"version {version.name!r} was deleted at {version.delete_time} by {version.deleted_by!r}"
    if version.state == PURGED:
        raise NotFound(f"{deleted} and its files are gone; choose another: `anthesis models show {version.model}`")
    raise NotFound(f"{deleted}; `anthesis models undelete {version.name}` brings it back")


def check_not_deleted(model: Model) -> Model:
    """Return `model`; raise NotFound, saying who deleted it and what to do, where it is deleted."""
    if model.delete_time:
        raise NotFound(_deleted(model))
    return model


def check_can_grow(model: Model) -> None:
    """Raise FailedPrecondition where a new version of `model` would be one of a deleted model."""
    if model.delete_time:
        raise FailedPrecondition(f"{_deleted(model)}, or choose another model name")


def _deleted(model: Model) -> str:
    deleted = f"model {model.name!r} was deleted at {model.delete_time} by {model.deleted_by!r}"
    return f"{deleted}; `anthesis models undelete {model.name}` brings it back"


def no_version(name: str) -> NotFound:
    return NotFound(f"no version {name[:200]!r}; name one as <model>@<number>, as `anthesis models show` lists them")


def no_model(name: str) -> NotFound:
    return NotFound(f"no model {name[:200]!r}; `anthesis models list` shows what there is")
