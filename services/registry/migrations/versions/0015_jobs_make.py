"""Tokenizers and clean datasets, which jobs make. On the way back such jobs go: the older release knows nothing of them

Revises: 0014
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_KINDS = ("train_tokenizer", "clean_corpus")
_OF_JOBS = ("webhook_deliveries", "state_changes", "job_log_parts", "job_events", "job_datasets", "outbox")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("made", sa.JSON(), nullable=True))


def downgrade() -> None:
    jobs = sa.table("jobs", sa.column("id"), sa.column("spec", sa.JSON()))
    connection = op.get_bind()
    rows = connection.execute(sa.select(jobs.c.id, jobs.c.spec)).all()
    ids = [job_id for job_id, spec in rows if spec["kind"] in _KINDS]
    for name, key in (*((name, "job_id") for name in _OF_JOBS), ("jobs", "id")):
        table = sa.table(name, sa.column(key))
        for job_id in ids:
            connection.execute(table.delete().where(table.c[key] == job_id))
    op.drop_column("jobs", "made")
