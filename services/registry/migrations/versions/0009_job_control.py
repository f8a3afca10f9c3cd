"""Jobs have a priority and a log, can be paused; webhooks

Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("jobs") as batch:
        batch.add_column(sa.Column("pause_requested", sa.Boolean(), nullable=False, server_default=sa.false()))
        batch.add_column(sa.Column("priority", sa.Text(), nullable=False, server_default="NORMAL"))
        batch.add_column(sa.Column("queue_time", sa.DateTime(timezone=True), nullable=True))
        batch.add_column(sa.Column("log_end", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute("UPDATE jobs SET queue_time = create_time")
    with op.batch_alter_table("jobs") as batch:
        batch.alter_column("queue_time", existing_type=sa.DateTime(timezone=True), nullable=False)
        batch.create_index(op.f("ix_jobs_state_queue_time"), ["state", "queue_time"])
    op.create_table(
        "job_log_parts",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("start", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_log_parts_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", "start", name=op.f("pk_job_log_parts")),
    )
    op.create_table(
        "state_changes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_state_changes_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_state_changes")),
        sqlite_autoincrement=True,
    )
    _create_webhooks()


def _create_webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event_types", sa.JSON(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
    )
    op.create_index(op.f("ix_webhooks_created_by"), "webhooks", ["created_by"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("webhook_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_time", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhooks.id"], name=op.f("fk_webhook_deliveries_webhook_id_webhooks")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_webhook_deliveries_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
        sa.UniqueConstraint(
            "webhook_id", "job_id", "sequence", name=op.f("uq_webhook_deliveries_webhook_id_job_id_sequence")
        ),
    )
    op.create_index(op.f("ix_webhook_deliveries_webhook_id_id"), "webhook_deliveries", ["webhook_id", "id"])
    op.create_index(op.f("ix_webhook_deliveries_state_next_time"), "webhook_deliveries", ["state", "next_time"])


def downgrade() -> None:
    """The older release knows no pause: what is paused waits for a worker again, and its events become messages."""
    events = sa.table("job_events", sa.column("kind", sa.Text()), sa.column("body", sa.JSON()))
    paused = sa.cast(events.c.body, sa.Text()).like('%"PAUSED"%') & (events.c.kind == "state")
    op.execute(events.update().where(paused).values(kind="message", body={"message": "paused"}))
    op.execute("UPDATE jobs SET state = 'PENDING' WHERE state = 'PAUSED'")
    for table in ("webhook_deliveries", "webhooks", "state_changes", "job_log_parts"):
        op.drop_table(table)
    with op.batch_alter_table("jobs") as batch:
        batch.drop_index(op.f("ix_jobs_state_queue_time"))
        for column in ("pause_requested", "priority", "queue_time", "log_end"):
            batch.drop_column(column)
