"""How much a project may have: jobs that have not ended, bytes in the store. 0: as much as it likes.
What it may use, requests and tokens, gateways ask for (usage.py) and enforce.

Counted in the transaction that adds to it, with the project's row locked: of two at once one waits for the other. What
a service does for a project is never refused: a job that has run for days is not lost over the bytes of its version.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.auth import current_call
from services.common.errors import ResourceExhausted
from services.registry.projects.tables import Project, ProjectArtifact, Usage
from services.registry.tables import ENDED, Job, Upload


async def _lock_limited(session: AsyncSession) -> Project | None:
    """The caller's project, whose quotas hold; None: no limit."""
    caller = current_call().principal
    if not caller.project or caller.is_service:
        return None
    return await session.get(Project, caller.project, with_for_update=True, populate_existing=True)


async def check_jobs(session: AsyncSession) -> None:
    """Raise ResourceExhausted unless the caller's project may have one more job."""
    project = await _lock_limited(session)
    if project is None or not project.max_jobs:
        return
    count = await unfinished_jobs(session, project.name)
    if count >= project.max_jobs:
        raise ResourceExhausted(
            f"project {project.name!r} has {count} jobs that have not ended and may have {project.max_jobs}; wait for "
            "one, cancel one, or ask a platform admin for more"
        )


async def check_stored_bytes(session: AsyncSession, sizes: Mapping[str, int]) -> None:
    """Raise ResourceExhausted unless the caller's project may store these as well, by digest."""
    project = await _lock_limited(session)
    if project is None or not project.max_stored_bytes:
        return
    stored = select(ProjectArtifact.digest).where(ProjectArtifact.project == project.name)
    known = set(await session.scalars(stored.where(ProjectArtifact.digest.in_(sizes))))
    more = sum(size for digest, size in sizes.items() if digest not in known)
    used = await stored_bytes(session, project.name)
    if more and used + more > project.max_stored_bytes:
        raise ResourceExhausted(
            f"project {project.name!r} has {used} bytes in the store, with uploads under way, and would have {more} "
            f"more; it may have {project.max_stored_bytes}: ask a platform admin for more, or to collect what nothing "
            "needs (`anthesis artifacts gc`)"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Used:
    """What counts against a project's quotas."""

    jobs: int
    stored_bytes: int
    tokens_today: int


async def read_used(session: AsyncSession, project: str, day: str) -> Used:
    return Used(
        jobs=await unfinished_jobs(session, project),
        stored_bytes=await stored_bytes(session, project),
        tokens_today=await tokens_on(session, project, day),
    )


async def tokens_on(session: AsyncSession, project: str, day: str) -> int:
    total = func.coalesce(func.sum(Usage.prompt_tokens + Usage.completion_tokens), 0)
    return int(await session.scalar(select(total).where(Usage.project == project, Usage.day == day)) or 0)


def day_of(time: datetime) -> str:
    return time.date().isoformat()


async def unfinished_jobs(session: AsyncSession, project: str) -> int:
    query = select(func.count()).select_from(Job).where(Job.project == project, Job.state.not_in(ENDED))
    return await session.scalar(query) or 0


async def stored_bytes(session: AsyncSession, project: str) -> int:
    """Of what the project has in the store, each artifact once, and of its unfinished uploads as stated."""
    artifacts = select(func.coalesce(func.sum(ProjectArtifact.size_bytes), 0))
    uploads = select(func.coalesce(func.sum(Upload.size_bytes), 0)).where(Upload.finish_time.is_(None))
    whose = Upload.principal.startswith(f"{project}/", autoescape=True)
    kept = await session.scalar(artifacts.where(ProjectArtifact.project == project)) or 0
    return int(kept) + int(await session.scalar(uploads.where(whose)) or 0)
