"""Files, and what OpenAI's fine-tuning API was asked for

Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("num_rows", sa.BigInteger(), nullable=False),
        sa.Column("longest_row_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expire_time", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
        sa.UniqueConstraint("created_by", "idempotency_key", name=op.f("uq_files_created_by_idempotency_key")),
    )
    op.create_index(op.f("ix_files_created_by_id"), "files", ["created_by", "id"])
    with op.batch_alter_table("jobs") as batch:
        batch.add_column(sa.Column("fine_tuning", sa.JSON(none_as_null=True), nullable=True))
        batch.create_index(batch.f("ix_jobs_created_by_id"), ["created_by", "id"])


def downgrade() -> None:
    with op.batch_alter_table("jobs") as batch:
        batch.drop_index(batch.f("ix_jobs_created_by_id"))
        batch.drop_column("fine_tuning")
    op.drop_index(op.f("ix_files_created_by_id"), "files")
    op.drop_table("files")
