"""From a name to a version: aliases, their history, and what a name given by a user means."""

import difflib
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.errors import FailedPrecondition, NotFound
from services.registry import audit
from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.names import check_name
from services.registry.pages import Page, PageRequest, read_page
from services.registry.tables import Alias, AliasChange, Model, ModelVersion


async def resolve(session: AsyncSession, name: str) -> ModelVersion:
    """The version that `name` means: an alias, else "<model>@<number>", else a model's newest version.

    Raises NotFound, with names that are close; FailedPrecondition for a model that has no weights yet.
    """
    aliased = select(ModelVersion).join(Alias, Alias.version == ModelVersion.name).where(Alias.name == name)
    if version := await session.scalar(aliased):
        return version
    if version := await session.scalar(select(ModelVersion).where(ModelVersion.name == name)):
        return version
    model = await session.get(Model, name)
    if model is None:
        raise NotFound(await _unknown(session, name))
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
    known = [*await session.scalars(select(Alias.name)), *await session.scalars(select(Model.name))]
    known += await session.scalars(select(ModelVersion.name).where(ModelVersion.model == name.partition("@")[0]))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"no model, version or alias {name[:200]!r}; {hint}`anthesis models list` shows what there is"


async def set_alias(session: AsyncSession, name: str, version: str, now: datetime) -> Alias:
    """Point alias `name` at `version` (a version's own name) and remember since when."""
    await insert_if_absent(session, Alias, name=name, version=version, update_time=now)
    alias = await session.get_one(Alias, name, with_for_update=True, populate_existing=True)
    alias.version, alias.update_time = version, now
    session.add(AliasChange(alias=name, version=version, time=now))
    audit.record(session, now, f"alias/{name}", version)
    await session.flush()
    return alias


class Aliases:
    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def set(self, name: str, version: str) -> Alias:
        """Point alias `name` at what `version` means now. Raises NotFound, InvalidArgument."""
        check_name("alias", name)
        async with self._database.write() as session:
            target = await resolve(session, version)
            return await set_alias(session, name, target.name, self._clock())

    async def list_aliases(self, page: PageRequest) -> Page[Alias]:
        async with self._database.read() as session:
            return await read_page(session, select(Alias), Alias.name, page, scope="aliases")

    async def at(self, name: str, time: datetime) -> str:
        """The version that alias `name` pointed to at `time`. Raises NotFound when it did not exist then."""
        query = (
            select(AliasChange.version)
            .where(AliasChange.alias == name, AliasChange.time <= time)
            .order_by(AliasChange.time.desc(), AliasChange.id.desc())
            .limit(1)
        )
        async with self._database.read() as session:
            version = await session.scalar(query)
        if version is None:
            raise NotFound(f"alias {name!r} did not exist at {time.isoformat()}")
        return version

    async def resolve(self, name: str) -> ModelVersion:
        """See the function of this name."""
        async with self._database.read() as session:
            return await resolve(session, name)
