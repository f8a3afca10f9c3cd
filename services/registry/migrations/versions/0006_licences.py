"""Licences, who accepted them, which files are under them; versions merged from several

Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_CARRIED = ("USE_RESTRICTIONS", "NOTICE", "CHANGES", "upstream/")  # of versions that this revision has seen before


def upgrade() -> None:
    op.create_table(
        "licences",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("must_accept", sa.Boolean(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_licences")),
    )
    op.create_table(
        "licence_acceptances",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("licence", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["licence"], ["licences.id"], name=op.f("fk_licence_acceptances_licence_licences")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_licence_acceptances")),
        sa.UniqueConstraint(
            "principal", "licence", "digest", name=op.f("uq_licence_acceptances_principal_licence_digest")
        ),
    )
    op.create_table(
        "licensed_files",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("licence", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("digest", "licence", name=op.f("pk_licensed_files")),
    )
    with op.batch_alter_table("model_versions") as batch:
        batch.add_column(sa.Column("other_parents", sa.JSON(), nullable=False, server_default="[]"))
    for table in ("models", "model_versions"):  # SPDX's ids have no case, and are kept in lower case from here on
        rows = sa.table(table, sa.column("licence"))
        op.execute(rows.update().values(licence=sa.func.replace(sa.func.lower(rows.c.licence), " and ", " AND ")))
    _note_files()


def _note_files() -> None:
    """Versions from before: their weights and states are under their licence."""
    versions = sa.table("model_versions", sa.column("licence", sa.Text()), sa.column("files", sa.JSON()))
    noted = sa.table("licensed_files", sa.column("digest"), sa.column("licence"))
    connection = op.get_bind()
    pairs = {
        (file["digest"], licence)
        for expression, files in connection.execute(sa.select(versions.c.licence, versions.c.files))
        for licence in expression.split(" AND ")
        for file in files
        if not file["path"].endswith((".json", ".md", ".txt")) and not file["path"].startswith(_CARRIED)
    }
    if pairs:
        op.bulk_insert(noted, [{"digest": digest, "licence": licence} for digest, licence in sorted(pairs)])


def downgrade() -> None:
    versions = sa.table("model_versions", sa.column("id"), sa.column("files", sa.JSON()))
    connection = op.get_bind()
    for version_id, files in connection.execute(sa.select(versions.c.id, versions.c.files)).all():
        plain = [{key: value for key, value in file.items() if key != "carried"} for file in files]
        connection.execute(versions.update().where(versions.c.id == version_id).values(files=plain))
    with op.batch_alter_table("model_versions") as batch:
        batch.drop_column("other_parents")
    op.drop_table("licensed_files")
    op.drop_table("licence_acceptances")
    op.drop_table("licences")
