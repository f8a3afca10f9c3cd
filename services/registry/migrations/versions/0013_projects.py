"""Projects

All that there is becomes shared, and keys the platform's. On the way back project's keys are revoked: without projects
they would see everything.

Revises: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

SCOPED = (
    "aliases",
    "api_keys",
    "audit_entries",
    "datasets",
    "deployments",
    "files",
    "jobs",
    "licence_acceptances",
    "model_versions",
    "models",
    "webhooks",
)


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("archive_time", sa.DateTime(timezone=True), nullable=True),
        sa.Column("max_jobs", sa.BigInteger(), nullable=False),
        sa.Column("max_stored_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_projects")),
    )
    op.create_table(
        "project_artifacts",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", "project", name=op.f("pk_project_artifacts")),
    )
    for table in SCOPED:  # not in batches: copying audit_entries would lose its triggers
        op.add_column(table, sa.Column("project", sa.Text(), nullable=False, server_default=""))
        op.create_index(op.f(f"ix_{table}_project"), table, ["project"])
    _share_artifacts()


def _share_artifacts() -> None:
    """What is referred to may be read by every project, as the rows that refer to it may."""
    versions = sa.table("model_versions", sa.column("tokenizer_digest"), sa.column("files", sa.JSON()))
    datasets = sa.table("datasets", sa.column("digest"), sa.column("size_bytes"), sa.column("report_digest"))
    shared = sa.table("project_artifacts", sa.column("digest"), sa.column("project"), sa.column("size_bytes"))
    connection = op.get_bind()
    sizes: dict[str, int] = {}
    for tokenizer, files in connection.execute(sa.select(versions.c.tokenizer_digest, versions.c.files)):
        sizes |= {tokenizer: 0} | {file["digest"]: file["size_bytes"] for file in files}
    for digest, size_bytes, report in connection.execute(
        sa.select(datasets.c.digest, datasets.c.size_bytes, datasets.c.report_digest)
    ):
        sizes |= {digest: size_bytes} | ({report: 0} if report else {})
    rows = [{"digest": digest, "project": "", "size_bytes": size} for digest, size in sorted(sizes.items())]
    if rows:
        op.bulk_insert(shared, rows)


def downgrade() -> None:
    op.execute("UPDATE api_keys SET revoke_time = CURRENT_TIMESTAMP WHERE revoke_time IS NULL AND project <> ''")
    for table in SCOPED:
        op.drop_index(op.f(f"ix_{table}_project"), table)
        op.drop_column(table, "project")
    op.drop_table("project_artifacts")
    op.drop_table("projects")
