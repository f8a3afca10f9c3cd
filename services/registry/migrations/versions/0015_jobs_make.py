"""Jobs that train tokenizers, clean text and import models

On the way back they go, as the older release knows no such kinds. An import that has made a version, which names it and
cannot be changed, stays as a pre-training without data.


Revises: 0014
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_KINDS = ("train_tokenizer", "clean_corpus", "import_model")
_IMPORTED = {"kind": "pretrain", "tokenizer_digest": "", "datasets": [], "config": "", "options": {}}
_OF_JOBS = ("webhook_deliveries", "state_changes", "job_log_parts", "job_events", "job_datasets", "outbox")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("made", sa.JSON(), nullable=True))


def downgrade() -> None:
    jobs = sa.table("jobs", sa.column("id"), sa.column("spec", sa.JSON()), sa.column("model_version"))
    connection = op.get_bind()
    for job_id, spec, version in connection.execute(sa.select(jobs.c.id, jobs.c.spec, jobs.c.model_version)).all():
        if spec["kind"] == "import_model" and version:
            known = _IMPORTED | {"output_model": spec["model"], "licence": spec["licence"]}
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(spec=known))
        elif spec["kind"] in _KINDS:
            _delete(connection, job_id)
    op.drop_column("jobs", "made")


def _delete(connection: sa.Connection, job_id: str) -> None:
    for name, key in (*((name, "job_id") for name in _OF_JOBS), ("jobs", "id")):
        table = sa.table(name, sa.column(key))
        connection.execute(table.delete().where(table.c[key] == job_id))
