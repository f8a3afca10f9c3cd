"""Projects: made, looked at, archived. What they see of the tables: session.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.artifacts import check_digest
from services.common.auth import PROJECT_HEADER, current_project
from services.common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from services.registry import audit
from services.registry.database import Clock, Database, insert_if_absent, utc_now
from services.registry.names import check_name
from services.registry.pages import Page, PageRequest, read_page
from services.registry.projects.artifacts import note_artifacts
from services.registry.projects.quotas import Used, day_of, read_used
from services.registry.projects.tables import Project

MAX_DESCRIPTION = 1000
QUOTAS = ("max_jobs", "max_stored_bytes", "max_requests_per_minute", "max_tokens_per_day")  # columns of Project
MAX_QUOTA = (1 << 62) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectChange:
    """What is to be set; None: as it is."""

    description: str | None = None
    archived: bool | None = None
    quotas: Mapping[str, int] = field(default_factory=dict)  # column of Project -> its new value; 0: no limit


async def find_project(session: AsyncSession, name: str, *, lock: bool = False) -> Project:
    """Raises NotFound, also for one that the caller does not see."""
    project = await session.get(Project, name, with_for_update=lock or None, populate_existing=True)
    if project is None:
        raise NotFound(f"no project {name[:200]!r}; `anthesis projects list` shows what there is")
    return project


async def find_open(session: AsyncSession, name: str) -> Project:
    """Locked until the transaction ends. Raises NotFound, FailedPrecondition for an archived one."""
    project = await find_project(session, name, lock=True)
    if project.archive_time:
        raise FailedPrecondition(f"project {name!r} is archived; `anthesis projects restore {name}` before that")
    return project


class Projects:
    def __init__(self, database: Database, clock: Clock = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def create(self, name: str, description: str = "", quotas: Mapping[str, int] | None = None) -> Project:
        """Raises AlreadyExists, InvalidArgument."""
        check_name("project", name)
        values = {"description": _check_description(description), **_check_quotas(quotas or {})}
        now = self._clock()
        async with self._database.write() as session:
            if not await insert_if_absent(session, Project, name=name, create_time=now, **values):
                raise AlreadyExists(f"project {name!r} exists already; choose another name")
            project = await session.get_one(Project, name)
            audit.record(session, now, f"project/{name}", describe(project))
            return project

    async def get(self, name: str) -> Project:
        """Raises NotFound."""
        async with self._database.read() as session:
            return await find_project(session, name)

    async def get_with_used(self, name: str) -> tuple[Project, Used]:
        """With what counts against its quotas now. Raises NotFound."""
        async with self._database.read() as session:
            project = await find_project(session, name)
            return project, await read_used(session, project.name, day_of(self._clock()))

    async def list_projects(self, page: PageRequest) -> Page[Project]:
        async with self._database.read() as session:
            return await read_page(session, select(Project), Project.name, page, scope="projects")

    async def update(self, name: str, change: ProjectChange) -> Project:
        """Set what `change` gives; the same again changes nothing. Raises NotFound, InvalidArgument."""
        now = self._clock()
        async with self._database.write() as session:
            project = await find_project(session, name, lock=True)
            if change.description is not None:
                project.description = _check_description(change.description)
            for column, most in _check_quotas(change.quotas).items():
                setattr(project, column, most)
            if change.archived is not None:
                project.archive_time = (project.archive_time or now) if change.archived else None
            if session.is_modified(project):
                audit.record(session, now, f"project/{name}", describe(project))
            return project

    async def note_artifact(self, digest: str, size_bytes: int) -> None:
        """The project for which a service calls may read what the service has written. Raises InvalidArgument."""
        check_digest(digest)
        if not (project := current_project()):
            raise InvalidArgument(f"the call is for no project; send {PROJECT_HEADER} with its name")
        async with self._database.write() as session:
            await note_artifacts(session, project, {digest: size_bytes})


def _check_description(text: str) -> str:
    if len(text) > MAX_DESCRIPTION:
        raise InvalidArgument(f"description has {len(text)} characters; use at most {MAX_DESCRIPTION}")
    return text


def _check_quotas(quotas: Mapping[str, int]) -> Mapping[str, int]:
    for column, most in quotas.items():
        if not 0 <= most <= MAX_QUOTA:
            raise InvalidArgument(f"{column}={most} is out of range; choose 0 (no limit) to {MAX_QUOTA}")
    return quotas


def describe(project: Project) -> str:
    """What the audit log says of a project that was made or changed."""
    quotas = [f"{column}={getattr(project, column)}" for column in QUOTAS if getattr(project, column)]
    return "; ".join(["archived" if project.archive_time else "open", *quotas])
