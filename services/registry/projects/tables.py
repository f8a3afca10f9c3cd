"""Tables of projects themselves."""

from datetime import datetime

from sqlalchemy import BigInteger, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from services.registry.projects.scope import ProjectPrivate
from services.registry.tables import Base


class Project(Base):
    __tablename__ = "projects"

    name: Mapped[str] = mapped_column(primary_key=True)
    description: Mapped[str]
    create_time: Mapped[datetime]
    archive_time: Mapped[datetime | None]  # null: it is not archived
    # Quotas (quotas.py); 0: none
    max_jobs: Mapped[int] = mapped_column(BigInteger, default=0)
    max_stored_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    max_requests_per_minute: Mapped[int] = mapped_column(BigInteger, default=0)
    max_tokens_per_day: Mapped[int] = mapped_column(BigInteger, default=0)


class ProjectArtifact(Base):
    """An artifact that a project may read: it has sent it, or has a row that refers to it. "": all projects may."""

    __tablename__ = "project_artifacts"

    digest: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class Usage(ProjectPrivate, Base):
    """What was used, added up. Rows of a day that is over are never updated."""

    __tablename__ = "usage"
    __table_args__ = (
        UniqueConstraint("day", "project", "principal", "model_version", "language"),
        Index(None, "project", "day"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    day: Mapped[str]  # "2026-11-29", UTC
    principal: Mapped[str]
    model_version: Mapped[str]
    language: Mapped[str]  # "": the caller did not state one
    requests: Mapped[int] = mapped_column(BigInteger)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)


class UsageBatch(Base):
    """A report that has been counted."""

    __tablename__ = "usage_batches"

    id: Mapped[str] = mapped_column(primary_key=True)
    time: Mapped[datetime]
