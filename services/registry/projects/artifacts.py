"""Which artifacts a project may read: what it has sent, and what rows that it sees refer to.

Artifacts are named by their content and shared by all. So whoever knows a digest could read, or register under a name
of their own, what another project keeps secret: a digest in a request of a project has to be one that it may read
(rpc/artifact_guard.py).
"""

from collections.abc import Iterable, Mapping

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.auth import current_project
from services.registry.database import insert_if_absent
from services.registry.projects.tables import ProjectArtifact


async def note_artifacts(session: AsyncSession, project: str, sizes: Mapping[str, int]) -> None:
    """From now on `project` ("": every one) may read these, by digest."""
    for digest, size_bytes in sorted(sizes.items()):
        await insert_if_absent(session, ProjectArtifact, digest=digest, project=project, size_bytes=size_bytes)


async def may_read(session: AsyncSession, digests: Iterable[str]) -> bool:
    """Whether the caller's project may read all of them."""
    project, asked = current_project(), set(digests)
    if not project:
        return True
    query = select(ProjectArtifact.digest).where(
        ProjectArtifact.digest.in_(asked), ProjectArtifact.project.in_(["", project])
    )
    return set(await session.scalars(query)) == asked
