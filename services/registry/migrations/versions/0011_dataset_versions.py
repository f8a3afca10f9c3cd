"""Datasets have versions, who made them and reports; what refers to a dataset names its version

Revises: 0009
"""

from collections.abc import Callable

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0009"
branch_labels = None
depends_on = None

_LISTS = ("datasets", "validation_datasets")  # of a job's spec


def upgrade() -> None:
    with op.batch_alter_table("datasets") as batch:
        batch.add_column(sa.Column("dataset", sa.Text(), nullable=False, server_default=""))
        batch.add_column(sa.Column("number", sa.Integer(), nullable=False, server_default="1"))
        batch.add_column(sa.Column("created_by", sa.Text(), nullable=False, server_default=""))
        batch.add_column(sa.Column("report_digest", sa.Text(), nullable=True))
        batch.add_column(sa.Column("report_job_id", sa.Text(), nullable=True))
    table = sa.table("datasets", sa.column("name"), sa.column("dataset"), sa.column("number"))
    connection = op.get_bind()
    for name in connection.scalars(sa.select(table.c.name)).all():
        pinned = _pinned(name)
        dataset, _, number = pinned.rpartition("@")
        values = {"name": pinned, "dataset": dataset, "number": int(number)}
        connection.execute(table.update().where(table.c.name == name).values(values))
    with op.batch_alter_table("datasets") as batch:
        batch.create_unique_constraint(op.f("uq_datasets_dataset_number"), ["dataset", "number"])
    _rename(_pinned)


def downgrade() -> None:
    """The older release knows no versions: the first keeps the plain name, "udhr@2" is a dataset of that name."""
    connection = op.get_bind()
    _drop_validations()
    table = sa.table("datasets", sa.column("name"), sa.column("dataset"), sa.column("number"))
    connection.execute(table.update().where(table.c.number == 1).values(name=table.c.dataset))
    with op.batch_alter_table("datasets") as batch:
        batch.drop_constraint(op.f("uq_datasets_dataset_number"), type_="unique")
        for column in ("dataset", "number", "created_by", "report_digest", "report_job_id"):
            batch.drop_column(column)
    _rename(lambda name: name.removesuffix("@1"))


def _pinned(name: str) -> str:
    return name if "@" in name else f"{name}@1"


def _rename(new_name: Callable[[str], str]) -> None:
    """In the specs of jobs and the versions of models."""
    jobs = sa.table("jobs", sa.column("id"), sa.column("spec", sa.JSON()))
    versions = sa.table("model_versions", sa.column("id"), sa.column("datasets", sa.JSON()))
    connection = op.get_bind()
    for job_id, spec in connection.execute(sa.select(jobs.c.id, jobs.c.spec)).all():
        renamed = {key: list(map(new_name, spec[key])) for key in _LISTS if key in spec}
        connection.execute(jobs.update().where(jobs.c.id == job_id).values(spec=spec | renamed))
    for version_id, names in connection.execute(sa.select(versions.c.id, versions.c.datasets)).all():
        renamed_list = list(map(new_name, names))
        connection.execute(versions.update().where(versions.c.id == version_id).values(datasets=renamed_list))


def _drop_validations() -> None:
    """Jobs of a kind that the older release does not know, with what belongs to them."""
    jobs = sa.table("jobs", sa.column("id"), sa.column("spec", sa.JSON()))
    connection = op.get_bind()
    rows = connection.execute(sa.select(jobs.c.id, jobs.c.spec)).all()
    ids = [job_id for job_id, spec in rows if spec["kind"] == "validate_dataset"]
    for name, key in (("job_events", "job_id"), ("outbox", "job_id"), ("jobs", "id")):
        table = sa.table(name, sa.column(key))
        for job_id in ids:
            connection.execute(table.delete().where(table.c[key] == job_id))
