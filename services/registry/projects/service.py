"""Projects: made, looked at, archived. What they see of the tables: session.py."""

from dataclasses import dataclass

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
from services.registry.projects.tables import Project

MAX_DESCRIPTION = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectChange:
    """What is to be set; None: as it is."""

    description: str | None = None
    archived: bool | None = None


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

    async def create(self, name: str, description: str = "") -> Project:
        """Raises AlreadyExists, InvalidArgument."""
        check_name("project", name)
        _check_description(description)
        now = self._clock()
        async with self._database.write() as session:
            if not await insert_if_absent(session, Project, name=name, description=description, create_time=now):
                raise AlreadyExists(f"project {name!r} exists already; choose another name")
            audit.record(session, now, f"project/{name}", "created")
            return await session.get_one(Project, name)

    async def get(self, name: str) -> Project:
        """Raises NotFound."""
        async with self._database.read() as session:
            return await find_project(session, name)

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


def describe(project: Project) -> str:
    """What the audit log says of a project that was changed."""
    return "archived" if project.archive_time else "open"
