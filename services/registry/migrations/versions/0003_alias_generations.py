"""An alias's changes are numbered and say how, who and why; an alias can be deleted

Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("aliases") as batch:
        batch.add_column(sa.Column("generation", sa.Integer(), nullable=False, server_default="0"))
        batch.alter_column("version", existing_type=sa.Text(), nullable=True)
    op.execute("UPDATE aliases SET generation = (SELECT count(*) FROM alias_changes WHERE alias = aliases.name)")
    with op.batch_alter_table("aliases") as batch:
        batch.alter_column("generation", existing_type=sa.Integer(), server_default=None)

    rows = _read(
        "SELECT alias, row_number() OVER (PARTITION BY alias ORDER BY id) AS generation, version, time "
        "FROM alias_changes"
    )
    op.drop_table("alias_changes")
    table = op.create_table(
        "alias_changes",
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=True),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("restored_generation", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["alias"], ["aliases.name"], name=op.f("fk_alias_changes_alias_aliases")),
        sa.ForeignKeyConstraint(
            ["version"], ["model_versions.name"], name=op.f("fk_alias_changes_version_model_versions")
        ),
        sa.PrimaryKeyConstraint("alias", "generation", name=op.f("pk_alias_changes")),
    )
    op.bulk_insert(table, [row | {"kind": "SET", "principal": "", "reason": ""} for row in rows])


def downgrade() -> None:
    """The older release knows no deleted alias: the name's history goes with it."""
    rows = _read(
        "SELECT alias, version, time FROM alias_changes WHERE version IS NOT NULL "
        "AND alias IN (SELECT name FROM aliases WHERE version IS NOT NULL) ORDER BY generation, alias"
    )
    op.drop_table("alias_changes")
    table = op.create_table(
        "alias_changes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["version"], ["model_versions.name"], name=op.f("fk_alias_changes_version_model_versions")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_changes")),
    )
    op.create_index(op.f("ix_alias_changes_alias_time"), "alias_changes", ["alias", "time"])
    op.bulk_insert(table, rows)

    op.execute("DELETE FROM aliases WHERE version IS NULL")
    with op.batch_alter_table("aliases") as batch:
        batch.alter_column("version", existing_type=sa.Text(), nullable=False)
        batch.drop_column("generation")


def _read(query: str) -> list[dict[str, object]]:
    typed = sa.text(query).columns(time=sa.DateTime(timezone=True))
    return [dict(row) for row in op.get_bind().execute(typed).mappings()]
