"""What keys may do and until when, and the audit log

Who had the role "user" could train: such a key becomes a trainer's.

Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SQLITE = (
    """CREATE TRIGGER audit_entries_no_update BEFORE UPDATE ON audit_entries
        BEGIN SELECT RAISE(ABORT, 'audit_entries is append-only'); END""",
    """CREATE TRIGGER audit_entries_no_delete BEFORE DELETE ON audit_entries
        BEGIN SELECT RAISE(ABORT, 'audit_entries is append-only'); END""",
    # INSERT OR REPLACE deletes the row that is there without asking the trigger above.
    """CREATE TRIGGER audit_entries_no_replace BEFORE INSERT ON audit_entries
        WHEN EXISTS (SELECT 1 FROM audit_entries WHERE id = NEW.id)
        BEGIN SELECT RAISE(ABORT, 'audit_entries is append-only'); END""",
)
POSTGRESQL = (
    """CREATE FUNCTION audit_entries_append_only() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'audit_entries is append-only'; END $$""",
    """CREATE TRIGGER audit_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_entries
        FOR EACH STATEMENT EXECUTE FUNCTION audit_entries_append_only()""",
)
INDEXES = (["principal", "id"], ["action", "id"], ["resource", "id"], ["time"])
# What the roles of before would give more to, or would not let expire.
WOULD_GAIN = "role IN ('viewer', 'user') OR expire_time IS NOT NULL OR CAST(scopes AS TEXT) <> '[]'"


def upgrade() -> None:
    with op.batch_alter_table("api_keys") as batch:
        batch.add_column(sa.Column("label", sa.Text(), nullable=False, server_default=""))
        batch.add_column(sa.Column("scopes", sa.JSON(), nullable=False, server_default="[]"))
        batch.add_column(sa.Column("expire_time", sa.DateTime(timezone=True), nullable=True))
        batch.add_column(sa.Column("last_used_time", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE api_keys SET role = 'trainer' WHERE role = 'user'")
    op.create_table(
        "audit_entries",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entries")),
        sqlite_autoincrement=True,
    )
    for columns in INDEXES:
        op.create_index(op.f(f"ix_audit_entries_{'_'.join(columns)}"), "audit_entries", columns)
    for statement in SQLITE if op.get_bind().dialect.name == "sqlite" else POSTGRESQL:
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("audit_entries")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_entries_append_only()")
    op.execute(
        f"UPDATE api_keys SET revoke_time = CURRENT_TIMESTAMP WHERE revoke_time IS NULL AND ({WOULD_GAIN})"  # noqa: S608
    )
    op.execute("UPDATE api_keys SET role = 'user' WHERE role IN ('viewer', 'trainer')")
    with op.batch_alter_table("api_keys") as batch:
        for column in ("label", "scopes", "expire_time", "last_used_time"):
            batch.drop_column(column)
