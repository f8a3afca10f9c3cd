"""Sessions in which a project's call sees and changes what it may, whatever the statement.

Every ORM SELECT, UPDATE and DELETE gets a condition on each table of projects that it mentions, at whatever depth
(mentions.py); a flush that would change another's row is refused. Calls without a project, and the platform's own work,
are not limited. Statements on `Table`s (Core) are not ORM statements: who writes one limits it by hand.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Select, event, inspect, literal, or_, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute, ORMExecuteState, Session, with_loader_criteria
from sqlalchemy.orm.util import LoaderCriteriaOption

from services.common.auth import current_project
from services.common.errors import AlreadyExists, PermissionDenied
from services.registry.projects.mentions import mentioned_tables
from services.registry.projects.scope import ProjectPrivate, ProjectScoped
from services.registry.projects.tables import Project
from services.registry.tables import (
    Alias,
    AliasChange,
    AliasGate,
    Base,
    Evaluation,
    EvaluationResult,
    Job,
    JobDataset,
    JobEvent,
    JobLogPart,
    Model,
    ModelCard,
    ModelVersion,
    Webhook,
    WebhookDelivery,
)

# Rows that go with one of another table: which column names it, and by which column of which table.
OWNED_BY: Mapping[type[Base], tuple[InstrumentedAttribute[str], *tuple[InstrumentedAttribute[str], ...]]] = {
    AliasChange: (AliasChange.alias, Alias.name),
    AliasGate: (AliasGate.alias, Alias.name),
    EvaluationResult: (EvaluationResult.evaluation, Evaluation.id),
    JobDataset: (JobDataset.job_id, Job.id),
    JobEvent: (JobEvent.job_id, Job.id),
    JobLogPart: (JobLogPart.job_id, Job.id),
    ModelCard: (ModelCard.name, Model.name, ModelVersion.name),
    WebhookDelivery: (WebhookDelivery.webhook_id, Webhook.id),
}


class ScopedSession(Session):
    """A session whose statements are limited to what the current call's project may see."""


@event.listens_for(ScopedSession, "do_orm_execute")
def _limit(state: ORMExecuteState) -> None:
    project = current_project()
    if project and state.is_orm_statement and not state.is_insert:
        changes = state.is_update or state.is_delete
        state.statement = state.statement.options(*limits(project, _mentioned(state), changes=changes))


def _mentioned(state: ORMExecuteState) -> frozenset[str] | None:
    """Names of tables; None: perhaps any, as where relationships load what no statement mentions."""
    related = state.is_relationship_load or any(mapper.relationships for mapper in state.all_mappers)
    return None if related else mentioned_tables(state.statement)


@event.listens_for(ScopedSession, "before_flush")
def _refuse_others_rows(session: Session, _context: Any, _instances: Any) -> None:
    project = current_project()
    changed = [row for row in session.dirty if session.is_modified(row)]
    for row in (*session.new, *changed, *session.deleted) if project else ():
        if isinstance(row, ProjectScoped) and _owner_of(row) not in (None, project):
            raise _not_own(type(row), getattr(row, "name", "") or _key(row), project)


def _owner_of(row: ProjectScoped) -> str | None:
    """Whose it is in the database, whatever was assigned since. Of a new row whose it shall be; None: the caller's."""
    state = inspect(row)
    owner: str | None = state.committed_state.get("project", row.project) if state.persistent else row.project
    return owner


def scoped_tables() -> list[type[Any]]:
    """Every table of which a project sees a part."""
    mapped = [mapper.class_ for mapper in Base.registry.mappers]
    return [Project, *OWNED_BY, *(table for table in mapped if issubclass(table, ProjectScoped))]


@lru_cache(maxsize=4096)
def limits(project: str, names: frozenset[str] | None, *, changes: bool) -> tuple[LoaderCriteriaOption, ...]:
    """What a statement of the project is limited by: rows it may see, or with `changes` those it may change.

    names: of the tables that it mentions; None: it might be any. A limit on a table that is not there changes nothing,
    but each makes every statement slower.
    """
    return tuple(
        with_loader_criteria(table, _condition(table, project, changes=changes), include_aliases=True)
        for table in scoped_tables()
        if names is None or table.__tablename__ in names
    )


def _condition(table: Any, project: str, *, changes: bool) -> ColumnElement[bool]:
    if table is Project:
        return Project.name == project
    if table in OWNED_BY:
        column, *keys = OWNED_BY[table]
        owners = (select(key).where(_condition(key.class_, project, changes=changes)) for key in keys)
        return or_(*map(column.in_, owners))
    own_alone = changes or issubclass(table, ProjectPrivate)
    found: ColumnElement[bool] = table.project.in_([project] if own_alone else ["", project])
    return found


async def check_usable(session: AsyncSession, *names: tuple[type[Any], str]) -> None:
    """Raise unless each name of a table's row ("": none) is free or the project's own.

    AlreadyExists for another project's, of which no more is told; PermissionDenied for a shared one.
    """
    project, asked = current_project(), [(table, name) for table, name in names if name]
    if not project or not asked:
        return
    owners = [_owner_query(table, {"name": name}, literal(number)) for number, (table, name) in enumerate(asked)]
    found: dict[int, str] = dict(iter(await session.execute(union_all(*owners))))
    for number, (table, name) in enumerate(asked):
        owner = found.get(number)
        if owner == "":
            raise _not_own(table, name, project)
        if owner not in (None, project):
            raise _taken(table, name)


async def check_not_taken(session: AsyncSession, table: type[Any], values: Mapping[str, Any]) -> None:
    """Raise AlreadyExists where the row with the key that `values` have is another project's."""
    project = current_project()
    if project and issubclass(table, ProjectScoped):
        key = {column.name: values.get(column.name) for column in table.__table__.primary_key}  # type: ignore[attr-defined]
        if await _owner(session, table, key) not in (None, "", project):
            raise _taken(table, str(next(iter(key.values()))))


async def _owner(session: AsyncSession, table: type[Any], key: Mapping[str, Any]) -> str | None:
    """Whose row it is, seen or not; None where there is none."""
    owner: str | None = await session.scalar(_owner_query(table, key))
    return owner


def _owner_query(table: type[Any], key: Mapping[str, Any], *first: ColumnElement[Any]) -> Select[Any]:
    columns = table.__table__.c
    return select(*first, columns.project).where(*(columns[name] == value for name, value in key.items()))


def _taken(table: type[Any], name: str) -> AlreadyExists:
    return AlreadyExists(f"{table.__name__.lower()} {name[:200]!r} is taken; choose another name")


def _not_own(table: type[Any], name: str, project: str) -> PermissionDenied:
    return PermissionDenied(
        f"{table.__name__.lower()} {name[:200]!r} is not of project {project!r}: it is shared, and only keys of the "
        "platform change it; make one of another name, or ask a platform admin"
    )


def _key(row: Any) -> str:
    return ", ".join(map(str, inspect(row).identity or ()))
