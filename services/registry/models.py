"""Models: names under which versions are registered, with what is known of them beforehand."""

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from services.common.auth import current_project
from services.common.errors import AlreadyExists
from services.registry import audit
from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.licences.acceptance import find_licences
from services.registry.licences.expression import normal
from services.registry.names import check_model_name
from services.registry.pages import Page, PageRequest, read_page
from services.registry.search import NEWEST, ModelQuery
from services.registry.tables import Model, ModelVersion
from services.registry.tags import check_tags
from services.registry.text import searchable
from services.registry.version_states import check_can_grow, check_not_deleted, lock_model, no_model


@dataclass(frozen=True, kw_only=True, slots=True)
class NewModel:
    name: str
    licence: str
    description: str = ""
    languages: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    created_by: str = ""  # principal


async def ensure_model(
    session: AsyncSession,
    name: str,
    licence: str,
    base: ModelVersion | None,
    now: datetime,
    *,
    created_by: str = "",
) -> Model:
    """The model's row, made when missing and locked until the transaction ends. What is made of a project's is its.

    Raises FailedPrecondition for a deleted one.
    """
    await insert_if_absent(
        session,
        Model,
        name=check_model_name(name),
        project=current_project() or (base.project if base else ""),
        licence=licence,
        base_model=base.model if base else "",
        create_time=now,
        search_text=searchable(name),
        created_by=created_by,
    )
    model = await lock_model(session, name)
    check_can_grow(model)
    return model


class Models:
    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def create(self, new: NewModel) -> Model:
        """Raises AlreadyExists, InvalidArgument, FailedPrecondition for a licence whose text is not here."""
        check_model_name(new.name)
        licence, tags = normal(new.licence), check_tags(new.tags)
        async with self._database.write() as session:
            await find_licences(session, licence)
            created = await insert_if_absent(
                session,
                Model,
                name=new.name,
                licence=licence,
                description=new.description,
                languages=new.languages,
                create_time=self._clock(),
                tags=tags,
                search_text=searchable(new.name, new.description, *tags),
                created_by=new.created_by,
            )
            if not created:
                check_can_grow(await session.get_one(Model, new.name))
                raise AlreadyExists(
                    f"model {new.name!r} exists already; register versions under it, or choose another name"
                )
            audit.record(session, self._clock(), f"model/{new.name}", new.licence)
            return await session.get_one(Model, new.name)

    async def get(self, name: str) -> Model:
        """Raises NotFound."""
        async with self._database.read() as session:
            model = await session.get(Model, name)
        if model is None:
            raise no_model(name)
        return check_not_deleted(model)

    async def list_models(self, page: PageRequest, query: ModelQuery | None = None) -> Page[Model]:
        """By name, unless `query` says otherwise."""
        query = query or ModelQuery()
        first, newest = (Model.create_time if query.order else None), query.order == NEWEST
        async with self._database.read() as session:
            return await read_page(
                session, query.select(), Model.name, page, scope=query.scope, newest_first=newest, first=first
            )
