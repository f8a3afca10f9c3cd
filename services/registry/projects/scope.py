"""What a project's rows have. What is done about it: session.py.

Whoever calls has a project or none (`Principal.project`; "": the whole platform). What a call makes is of its project.
"""

from sqlalchemy.orm import Mapped, mapped_column

from services.common.auth import current_project
from services.common.errors import FailedPrecondition


class ProjectScoped:
    """A row of one project, which others do not see. "" is shared: all see it, and only platform keys change it."""

    project: Mapped[str] = mapped_column(default=current_project, index=True)


class ProjectPrivate(ProjectScoped):
    """A row that its own project alone sees, also where it is of none."""


def check_refers(kind: str, name: str, project: str, owner: str) -> None:
    """Raise FailedPrecondition where a `project`'s row would lead to an `owner`'s, which not all who see it see."""
    if owner not in ("", project):
        whose = f"of project {project!r}" if project else "shared by all projects"
        raise FailedPrecondition(
            f"{kind} {name!r} is {whose} and would lead to what is of project {owner!r}; choose a name of that project"
        )
