"""Suites, evaluations and their results; gates of aliases, and what they said where they were overridden

Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "evaluation_suites",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("family", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("datasets", sa.JSON(), nullable=False),
        sa.Column("sequence_length", sa.Integer(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("published", sa.Boolean(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_evaluation_suites")),
        sa.UniqueConstraint("family", "number", name=op.f("uq_evaluation_suites_family_number")),
    )
    op.create_table(
        "evaluations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=True),
        sa.Column("suite", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("documents", sa.Text(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_evaluations_job_id_jobs")),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_evaluations_model_models")),
        sa.ForeignKeyConstraint(
            ["suite"], ["evaluation_suites.name"], name=op.f("fk_evaluations_suite_evaluation_suites")
        ),
        sa.ForeignKeyConstraint(
            ["version"], ["model_versions.name"], name=op.f("fk_evaluations_version_model_versions")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
    )
    op.create_index(op.f("ix_evaluations_version_suite"), "evaluations", ["version", "suite"])
    op.create_index(op.f("ix_evaluations_model"), "evaluations", ["model"])
    op.create_table(
        "evaluation_results",
        sa.Column("evaluation", sa.Text(), nullable=False),
        sa.Column("language", sa.Text(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=True),
        sa.Column("standard_error", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["evaluation"], ["evaluations.id"], name=op.f("fk_evaluation_results_evaluation_evaluations")
        ),
        sa.PrimaryKeyConstraint("evaluation", "language", "metric", name=op.f("pk_evaluation_results")),
    )
    op.create_table(
        "alias_gates",
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("suite", sa.Text(), nullable=False),
        sa.Column("languages", sa.JSON(), nullable=False),
        sa.Column("max_regression_percent", sa.Double(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["alias"], ["aliases.name"], name=op.f("fk_alias_gates_alias_aliases")),
        sa.ForeignKeyConstraint(
            ["suite"], ["evaluation_suites.name"], name=op.f("fk_alias_gates_suite_evaluation_suites")
        ),
        sa.PrimaryKeyConstraint("alias", name=op.f("pk_alias_gates")),
    )
    with op.batch_alter_table("alias_changes") as batch:
        batch.add_column(sa.Column("overridden", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    """The older release reads no job that evaluates: those go, with their events, and from fine-tunes what they ask."""
    with op.batch_alter_table("alias_changes") as batch:
        batch.drop_column("overridden")
    for table in ("alias_gates", "evaluation_results", "evaluations", "evaluation_suites"):
        op.drop_table(table)
    jobs = sa.table("jobs", sa.column("id", sa.Text()), sa.column("spec", sa.JSON()))
    connection = op.get_bind()
    for job_id, spec in connection.execute(sa.select(jobs.c.id, jobs.c.spec)).all():
        if spec["kind"] == "evaluate":
            for name, key in (("outbox", "job_id"), ("job_events", "job_id"), ("jobs", "id")):
                rows = sa.table(name, sa.column(key))
                connection.execute(rows.delete().where(rows.c[key] == job_id))
        elif "evaluate_with" in spec:
            kept = {key: value for key, value in spec.items() if key != "evaluate_with"}
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(spec=kept))
