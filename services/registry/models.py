"""Models: names under which versions are registered, with what is known of them beforehand."""

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.auth import current_project
from services.common.errors import AlreadyExists, NotFound
from services.registry import audit
from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.licences.acceptance import find_licences
from services.registry.licences.expression import normal
from services.registry.names import check_model_name
from services.registry.pages import Page, PageRequest, read_page
from services.registry.tables import Model, ModelVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class NewModel:
    name: str
    licence: str
    description: str = ""
    languages: list[str] = field(default_factory=list)


async def ensure_model(
    session: AsyncSession, name: str, licence: str, base: ModelVersion | None, now: datetime
) -> Model:
    """The model's row, made when missing and locked until the transaction ends. What is made of a project's is its."""
    await insert_if_absent(
        session,
        Model,
        name=check_model_name(name),
        project=current_project() or (base.project if base else ""),
        licence=licence,
        base_model=base.model if base else "",
        create_time=now,
    )
    return await session.get_one(Model, name, with_for_update=True, populate_existing=True)


class Models:
    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def create(self, new: NewModel) -> Model:
        """Raises AlreadyExists, InvalidArgument, FailedPrecondition for a licence whose text is not here."""
        check_model_name(new.name)
        licence = normal(new.licence)
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
            )
            if not created:
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
            raise NotFound(f"no model {name[:200]!r}; `anthesis models list` shows what there is")
        return model

    async def list_models(self, page: PageRequest) -> Page[Model]:
        async with self._database.read() as session:
            return await read_page(session, select(Model), Model.name, page, scope="models")
