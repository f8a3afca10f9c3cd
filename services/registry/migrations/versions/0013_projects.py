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
    "evaluation_suites",
    "evaluations",
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
        sa.Column("max_requests_per_minute", sa.BigInteger(), nullable=False),
        sa.Column("max_tokens_per_day", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_projects")),
    )
    op.create_table(
        "project_artifacts",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", "project", name=op.f("pk_project_artifacts")),
    )
    _make_usage()
    for table in SCOPED:  # not in batches: copying audit_entries would lose its triggers
        op.add_column(table, sa.Column("project", sa.Text(), nullable=False, server_default=""))
        op.create_index(op.f(f"ix_{table}_project"), table, ["project"])
    _share_artifacts()


def _make_usage() -> None:
    op.create_table(
        "usage",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("day", sa.Text(), nullable=False),
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("model_version", sa.Text(), nullable=False),
        sa.Column("language", sa.Text(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage")),
        sa.UniqueConstraint(
            "day",
            "project",
            "principal",
            "model_version",
            "language",
            name=op.f("uq_usage_day_project_principal_model_version_language"),
        ),
    )
    op.create_index(op.f("ix_usage_project"), "usage", ["project"])
    op.create_index(op.f("ix_usage_project_day"), "usage", ["project", "day"])
    op.create_table(
        "usage_batches",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_batches")),
    )


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
    evaluations = sa.table("evaluations", sa.column("documents"))
    for documents in connection.scalars(sa.select(evaluations.c.documents).where(evaluations.c.documents.is_not(None))):
        sizes |= {documents: 0}
    rows = [{"digest": digest, "project": "", "size_bytes": size} for digest, size in sorted(sizes.items())]
    if rows:
        op.bulk_insert(shared, rows)


def downgrade() -> None:
    op.execute("UPDATE api_keys SET revoke_time = CURRENT_TIMESTAMP WHERE revoke_time IS NULL AND project <> ''")
    for table in SCOPED:
        op.drop_index(op.f(f"ix_{table}_project"), table)
        op.drop_column(table, "project")
    op.drop_table("usage_batches")
    op.drop_table("usage")
    op.drop_table("project_artifacts")
    op.drop_table("projects")
