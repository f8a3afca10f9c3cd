"""Versions and models that can be deleted, found and described; nothing changes what a version is made of

Revises: 0013
"""

import unicodedata
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_PLAIN: tuple[str, ...] = ("id", "name", "model", "number", "licence", "tokenizer_digest", "config_json", "parameters")
_PLAIN += ("parent", "job_id", "source", "create_time", "project")
_JSON = ("other_parents", "datasets")
_SAYS = "a version does not change; register another"

SQLITE = (
    f"""CREATE TRIGGER model_versions_no_update BEFORE UPDATE ON model_versions
        WHEN {" OR ".join(f"NEW.{column} IS NOT OLD.{column}" for column in (*_PLAIN, *_JSON))}
        OR (OLD.state = 'PURGED' AND NEW.state <> 'PURGED')
        OR ((NEW.files IS NOT OLD.files OR NEW.size_bytes IS NOT OLD.size_bytes)
            AND NOT (NEW.state = 'PURGED' AND OLD.state = 'DELETED' AND NEW.files = '[]'))
        BEGIN SELECT RAISE(ABORT, '{_SAYS}'); END""",
    f"""CREATE TRIGGER model_versions_no_delete BEFORE DELETE ON model_versions
        BEGIN SELECT RAISE(ABORT, '{_SAYS}'); END""",
    # INSERT OR REPLACE deletes the row that is there without asking the trigger above.
    f"""CREATE TRIGGER model_versions_no_replace BEFORE INSERT ON model_versions
        WHEN EXISTS (SELECT 1 FROM model_versions WHERE id = NEW.id OR name = NEW.name)
        BEGIN SELECT RAISE(ABORT, '{_SAYS}'); END""",  # noqa: S608
)
_OLD = ", ".join([*(f"OLD.{column}" for column in _PLAIN), *(f"OLD.{column}::text" for column in _JSON)])
POSTGRESQL = (
    f"""CREATE FUNCTION model_versions_do_not_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_OP = 'UPDATE' THEN
            IF ({_OLD.replace("OLD.", "NEW.")}) IS NOT DISTINCT FROM ({_OLD})
                AND NOT (OLD.state = 'PURGED' AND NEW.state <> 'PURGED')
                AND ((NEW.files::text = OLD.files::text AND NEW.size_bytes = OLD.size_bytes)
                    OR (NEW.state = 'PURGED' AND OLD.state = 'DELETED' AND NEW.files::text = '[]'))
            THEN RETURN NEW; END IF;
        END IF;
        RAISE EXCEPTION '{_SAYS}'; END $$""",
    """CREATE TRIGGER model_versions_no_update BEFORE UPDATE OR DELETE ON model_versions
        FOR EACH ROW EXECUTE FUNCTION model_versions_do_not_change()""",
    """CREATE TRIGGER model_versions_no_truncate BEFORE TRUNCATE ON model_versions
        FOR EACH STATEMENT EXECUTE FUNCTION model_versions_do_not_change()""",
)
_JOB_INDEXES = (
    ["state", "id"],
    ["output_model", "id"],
    ["base", "id"],
    ["id", "output_model", "base"],
)
_VERSION_INDEXES = (["model", "id"], ["parent"], ["create_time"])


def upgrade() -> None:
    for table in ("models", "model_versions"):
        with op.batch_alter_table(table) as batch:
            batch.add_column(sa.Column("tags", sa.JSON(), nullable=False, server_default="[]"))
            batch.add_column(sa.Column("created_by", sa.Text(), nullable=False, server_default=""))
            batch.add_column(sa.Column("delete_time", sa.DateTime(timezone=True), nullable=True))
            batch.add_column(sa.Column("deleted_by", sa.Text(), nullable=False, server_default=""))
    with op.batch_alter_table("models") as batch:
        batch.add_column(sa.Column("search_text", sa.Text(), nullable=False, server_default=""))
    with op.batch_alter_table("model_versions") as batch:
        batch.add_column(sa.Column("state", sa.Text(), nullable=False, server_default="READY"))
        batch.add_column(sa.Column("expire_time", sa.DateTime(timezone=True), nullable=True))
    with op.batch_alter_table("jobs") as batch:
        batch.add_column(sa.Column("output_model", sa.Text(), nullable=False, server_default=""))
        batch.add_column(sa.Column("base", sa.Text(), nullable=False, server_default=""))
    op.create_table(
        "job_datasets",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("dataset", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_datasets_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", "dataset", name=op.f("pk_job_datasets")),
    )
    op.create_index(op.f("ix_job_datasets_dataset_job_id"), "job_datasets", ["dataset", "job_id"])
    op.create_table(
        "model_cards",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("update_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_model_cards")),
    )
    _fill_in()
    op.drop_index(op.f("ix_jobs_state"), "jobs")
    for columns in _JOB_INDEXES:
        op.create_index(op.f(f"ix_jobs_{'_'.join(columns)}"), "jobs", columns)
    op.create_index(op.f("ix_models_create_time_name"), "models", ["create_time", "name"])
    for columns in _VERSION_INDEXES:
        op.create_index(op.f(f"ix_model_versions_{'_'.join(columns)}"), "model_versions", columns)
    for statement in SQLITE if op.get_bind().dialect.name == "sqlite" else POSTGRESQL:
        op.execute(statement)


def _fill_in() -> None:
    """What models and jobs of before are found by."""
    connection = op.get_bind()
    models = sa.table("models", sa.column("name"), sa.column("description"), sa.column("search_text"))
    for name, description in connection.execute(sa.select(models.c.name, models.c.description)).all():
        text = " ".join(unicodedata.normalize("NFKC", f"{name} {description}").casefold().split())
        connection.execute(models.update().where(models.c.name == name).values(search_text=text))
    jobs = sa.table("jobs", sa.column("id"), sa.column("spec", sa.JSON()), sa.column("output_model"), sa.column("base"))
    job_datasets = sa.table("job_datasets", sa.column("job_id"), sa.column("dataset"))
    for job_id, spec in connection.execute(sa.select(jobs.c.id, jobs.c.spec)).all():
        found: dict[str, Any] = {"output_model": spec.get("output_model", ""), "base": spec.get("base", "")}
        connection.execute(jobs.update().where(jobs.c.id == job_id).values(**found))
        if names := sorted(set(spec.get("datasets", []))):
            op.bulk_insert(job_datasets, [{"job_id": job_id, "dataset": name} for name in names])


def downgrade() -> None:
    """The older release knows no deletion: what was deleted is there again, without files where they were collected."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER model_versions_no_update ON model_versions")
        op.execute("DROP TRIGGER model_versions_no_truncate ON model_versions")
        op.execute("DROP FUNCTION model_versions_do_not_change()")
    else:
        for name in ("update", "delete", "replace"):
            op.execute(f"DROP TRIGGER model_versions_no_{name}")
    op.drop_index(op.f("ix_models_create_time_name"), "models")
    for columns in _VERSION_INDEXES:
        op.drop_index(op.f(f"ix_model_versions_{'_'.join(columns)}"), "model_versions")
    for columns in _JOB_INDEXES:
        op.drop_index(op.f(f"ix_jobs_{'_'.join(columns)}"), "jobs")
    op.execute(  # there it is the counter of numbers, too
        "UPDATE models SET latest_version = coalesce("
        "(SELECT max(number) FROM model_versions WHERE model = models.name), 0)"
    )
    op.drop_table("model_cards")
    op.drop_table("job_datasets")
    with op.batch_alter_table("jobs") as batch:
        for column in ("output_model", "base"):
            batch.drop_column(column)
    with op.batch_alter_table("model_versions") as batch:
        for column in ("tags", "created_by", "delete_time", "deleted_by", "state", "expire_time"):
            batch.drop_column(column)
    with op.batch_alter_table("models") as batch:
        for column in ("tags", "created_by", "delete_time", "deleted_by", "search_text"):
            batch.drop_column(column)
    op.create_index(op.f("ix_jobs_state"), "jobs", ["state"])
