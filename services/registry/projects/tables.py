"""Tables of projects themselves."""

from datetime import datetime

from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

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


class ProjectArtifact(Base):
    """An artifact that a project may read: it has sent it, or has a row that refers to it. "": all projects may."""

    __tablename__ = "project_artifacts"

    digest: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
