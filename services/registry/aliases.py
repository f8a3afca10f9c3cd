"""From a name to a version: aliases, where they pointed, and what a name given by a user means."""

import difflib
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.errors import FailedPrecondition, NotFound
from services.registry.alias_changes import NewChange, delete_alias, no_alias, roll_back, set_alias
from services.registry.database import Clock, Database, utc_now
from services.registry.names import check_name
from services.registry.pages import Page, PageRequest, read_page
from services.registry.tables import READY, Alias, AliasChange, Model, ModelVersion
from services.registry.version_states import check_not_deleted, check_ready, hold


async def resolve(session: AsyncSession, name: str, *, held: bool = False) -> ModelVersion:
    """The version that `name` means: an alias, else "<model>@<number>", else a model's newest version.

    With `held` nobody deletes it until the writing transaction ends. Raises NotFound, with names that are close, or
    who deleted it; FailedPrecondition for a model that has no weights yet.
    """
    version = check_ready(await _resolve(session, name))
    return await hold(session, version.name) if held else version


async def _resolve(session: AsyncSession, name: str) -> ModelVersion:
    aliased = select(ModelVersion).join(Alias, Alias.version == ModelVersion.name).where(Alias.name == name)
    if version := await session.scalar(aliased):
        return version
    if version := await session.scalar(select(ModelVersion).where(ModelVersion.name == name)):
        return version
    model = await session.get(Model, name)
    if model is None:
        raise NotFound(await _unknown(session, name))
    check_not_deleted(model)
    if model.latest_version == 0:
        raise FailedPrecondition(no_weights(model))
    return (
        await session.scalars(select(ModelVersion).where(ModelVersion.name == f"{name}@{model.latest_version}"))
    ).one()


def no_weights(model: Model) -> str:
    remedy = f"import them: `anthesis models import {model.name} --from DIR`"
    known = "is in the catalogue but its weights are not here" if model.in_catalogue else "has no version yet"
    return f"model {model.name!r} {known}; {remedy}"


async def _unknown(session: AsyncSession, name: str) -> str:
    aliases = select(Alias.name).where(Alias.version.is_not(None))
    models = select(Model.name).where(Model.delete_time.is_(None))
    ready = select(ModelVersion.name).where(ModelVersion.model == name.partition("@")[0], ModelVersion.state == READY)
    known = [name for query in (aliases, models, ready) for name in await session.scalars(query)]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"no model, version or alias {name[:200]!r}; {hint}`anthesis models list` shows what there is"


class Aliases:
    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def set(self, name: str, version: str, new: NewChange) -> Alias:
        """Point alias `name` at what `version` means now. Raises NotFound, InvalidArgument, Aborted."""
        check_name("alias", name)
        async with self._database.write() as session:
            target = await resolve(session, version, held=True)
            return await set_alias(session, name, target.name, new, self._clock())

    async def roll_back(self, name: str, generation: int | None, new: NewChange) -> Alias:
        """See the function of this name in `alias_changes`."""
        async with self._database.write() as session:
            return await roll_back(session, name, generation, new, self._clock())

    async def delete(self, name: str, new: NewChange) -> None:
        """See `delete_alias`."""
        async with self._database.write() as session:
            await delete_alias(session, name, new, self._clock())

    async def list_aliases(self, page: PageRequest) -> Page[Alias]:
        query = select(Alias).where(Alias.version.is_not(None))
        async with self._database.read() as session:
            return await read_page(session, query, Alias.name, page, scope="aliases")

    async def list_changes(self, name: str, page: PageRequest) -> Page[AliasChange]:
        """Newest first; also of an alias that was deleted. Raises NotFound."""
        query = select(AliasChange).where(AliasChange.alias == name)
        scope = f"changes of {name}"
        async with self._database.read() as session:
            if await session.get(Alias, name) is None:
                raise no_alias(name)
            return await read_page(session, query, AliasChange.generation, page, scope=scope, newest_first=True)

    async def at(self, name: str, time: datetime | None = None) -> tuple[AliasChange, ModelVersion]:
        """Where alias `name` pointed at `time` (None: points now), and the change that pointed it there.

        That is the last change dated no later than `time`. Raises NotFound when the alias did not exist then.
        """
        query = (
            select(AliasChange, ModelVersion)
            .outerjoin(ModelVersion, ModelVersion.name == AliasChange.version)
            .where(AliasChange.alias == name)
            .order_by(AliasChange.generation.desc())
            .limit(1)
        )
        if time:
            query = query.where(AliasChange.time <= time)
        async with self._database.read() as session:
            found = (await session.execute(query)).first()
            if found is None and await session.get(Alias, name) is None:
                raise no_alias(name)
        see = f"see `anthesis aliases history {name}`"
        if found is None:
            raise NotFound(f"alias {name!r} did not exist at {time}; {see}")
        change, version = found
        if change.version is None:
            raise NotFound(f"alias {name!r} was deleted at {change.time} by {change.principal!r}; {see}")
        return change, version

    async def resolve(self, name: str) -> ModelVersion:
        """See the function of this name."""
        async with self._database.read() as session:
            return await resolve(session, name)
