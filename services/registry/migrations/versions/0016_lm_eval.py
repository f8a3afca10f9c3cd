"""Suites of lm-evaluation-harness, with the jobs that measure by them

On the way back both go, with what was measured: the older release knows no such kind.

Revises: 0015
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_OF_JOBS = ("webhook_deliveries", "state_changes", "job_log_parts", "job_events", "job_datasets", "outbox")


def upgrade() -> None:
    with op.batch_alter_table("evaluation_suites") as batch:
        batch.add_column(sa.Column("harness", sa.JSON(), nullable=True))


def downgrade() -> None:
    suites = sa.table("evaluation_suites", sa.column("name"), sa.column("kind"))
    evaluations = sa.table("evaluations", sa.column("id"), sa.column("suite"))
    jobs = sa.table("jobs", sa.column("id"), sa.column("spec", sa.JSON()))
    connection = op.get_bind()
    names = set(connection.scalars(sa.select(suites.c.name).where(suites.c.kind == "LM_EVAL")))
    measured = list(connection.scalars(sa.select(evaluations.c.id).where(evaluations.c.suite.in_(names))))
    found = connection.execute(sa.select(jobs.c.id, jobs.c.spec)).all()
    ids = [job_id for job_id, spec in found if spec["kind"] == "evaluate" and spec["suite"] in names]
    _delete(connection, "evaluation_results", "evaluation", measured)
    _delete(connection, "evaluations", "id", measured)
    for table in _OF_JOBS:
        _delete(connection, table, "job_id", ids)
    _delete(connection, "jobs", "id", ids)
    _delete(connection, "evaluation_suites", "name", sorted(names))
    with op.batch_alter_table("evaluation_suites") as batch:
        batch.drop_column("harness")


def _delete(connection: sa.Connection, name: str, key: str, values: list[str]) -> None:
    table = sa.table(name, sa.column(key))
    for value in values:
        connection.execute(table.delete().where(table.c[key] == value))
