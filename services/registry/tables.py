"""The registry's tables. Rows are what the use cases return; `rpc/messages.py` turns them into messages."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    MetaData,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.registry.projects.scope import ProjectPrivate, ProjectScoped

PENDING, RUNNING, SUCCEEDED, FAILED, CANCELLED = "PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"
PAUSED = "PAUSED"
ENDED = frozenset({SUCCEEDED, FAILED, CANCELLED})
READY, DELETED, PURGED = "READY", "DELETED", "PURGED"  # of a version; PURGED: its files are let go of


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in UTC. SQLite keeps no zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class AnyText(TypeDecorator[str]):
    """Text of any string that protobuf carries. PostgreSQL cannot hold NUL, so on both it becomes U+FFFD."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.replace("\0", "\ufffd")


class Base(DeclarativeBase):
    # Every constraint has a name, so that a migration on SQLite (which copies the table) can drop it.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy's own protocol)
        str: AnyText,
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[str]: JSON,
        list[dict[str, Any]]: JSON,
    }


class Model(ProjectScoped, Base):
    __tablename__ = "models"
    __table_args__ = (Index(None, "create_time", "name"),)

    name: Mapped[str] = mapped_column(primary_key=True)
    description: Mapped[str] = mapped_column(default="")
    licence: Mapped[str]
    languages: Mapped[list[str]] = mapped_column(default=list)
    config_json: Mapped[str] = mapped_column(default="")
    base_model: Mapped[str] = mapped_column(default="")
    latest_version: Mapped[int] = mapped_column(default=0)
    in_catalogue: Mapped[bool] = mapped_column(default=False)
    parameters: Mapped[int] = mapped_column(BigInteger, default=0)
    create_time: Mapped[datetime]
    tags: Mapped[list[str]] = mapped_column(default=list)
    search_text: Mapped[str] = mapped_column(default="")  # see search.py
    created_by: Mapped[str] = mapped_column(default="")  # "": the catalogue's, or by an older release
    delete_time: Mapped[datetime | None]
    deleted_by: Mapped[str] = mapped_column(default="")


class ModelVersion(ProjectScoped, Base):
    """Triggers refuse to change what a version is made of, and to delete a row (see version_states.py)."""

    __tablename__ = "model_versions"
    __table_args__ = (
        UniqueConstraint("model", "number"),
        Index(None, "model", "id"),
        Index(None, "parent"),
        Index(None, "create_time"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)  # order of creation
    name: Mapped[str] = mapped_column(unique=True)  # "<model>@<number>"
    model: Mapped[str] = mapped_column(ForeignKey("models.name"))
    number: Mapped[int]
    licence: Mapped[str]
    tokenizer_digest: Mapped[str]
    files: Mapped[list[dict[str, Any]]]  # path, digest, size_bytes, carried
    config_json: Mapped[str]
    parameters: Mapped[int] = mapped_column(BigInteger)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    parent: Mapped[str | None] = mapped_column(ForeignKey("model_versions.name"))
    other_parents: Mapped[list[str]] = mapped_column(default=list)  # of a merge: versions' names
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    datasets: Mapped[list[str]]
    source: Mapped[str]
    create_time: Mapped[datetime]
    state: Mapped[str] = mapped_column(default=READY)
    tags: Mapped[list[str]] = mapped_column(default=list)
    created_by: Mapped[str] = mapped_column(default="")  # "": by an older release
    delete_time: Mapped[datetime | None]
    deleted_by: Mapped[str] = mapped_column(default="")
    expire_time: Mapped[datetime | None]  # from when on a deleted one's files may be collected


class ModelCard(Base):
    """What people wrote on a model's or version's card (see cards/). The rest of it is made when it is asked for."""

    __tablename__ = "model_cards"

    name: Mapped[str] = mapped_column(primary_key=True)  # a model's, or a version's, which has an "@"
    text: Mapped[str]
    generation: Mapped[int]  # number of its changes
    update_time: Mapped[datetime]
    updated_by: Mapped[str]


class Alias(ProjectScoped, Base):
    """A movable name of a version. Its row outlives it (see alias_changes.py)."""

    __tablename__ = "aliases"

    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str | None] = mapped_column(ForeignKey("model_versions.name"))  # null: deleted
    generation: Mapped[int] = mapped_column(default=0)  # number of its changes
    update_time: Mapped[datetime]


class AliasChange(Base):
    """What an alias pointed to from `time` on, until its next change. Rows are never updated."""

    __tablename__ = "alias_changes"

    alias: Mapped[str] = mapped_column(ForeignKey("aliases.name"), primary_key=True)
    generation: Mapped[int] = mapped_column(primary_key=True)  # 1, 2, 3, ...; their order, also where times are equal
    kind: Mapped[str]  # SET, ROLLBACK, JOB, DELETE
    version: Mapped[str | None] = mapped_column(ForeignKey("model_versions.name"))  # null: DELETE
    time: Mapped[datetime]  # not before the change before
    principal: Mapped[str]  # "": not recorded, by an older release
    reason: Mapped[str]
    restored_generation: Mapped[int | None]  # ROLLBACK: the generation that set the version
    overridden: Mapped[str] = mapped_column(default="")  # what the alias's gate said, where it was overridden


class Dataset(ProjectScoped, Base):
    """A version of a dataset. But for its newest report, a row is never updated."""

    __tablename__ = "datasets"
    __table_args__ = (UniqueConstraint("dataset", "number"),)

    name: Mapped[str] = mapped_column(primary_key=True)  # "<dataset>@<number>"
    dataset: Mapped[str]
    number: Mapped[int]
    format: Mapped[str]  # TEXT, MULTITASK, FIELDS, BLEND or MIXTURE
    digest: Mapped[str]
    num_rows: Mapped[int] = mapped_column(BigInteger)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    languages: Mapped[list[str]]
    created_by: Mapped[str] = mapped_column(default="")  # "": not recorded, by an older release
    create_time: Mapped[datetime]
    report_digest: Mapped[str | None]  # see dataset_reports.py
    report_job_id: Mapped[str | None]


class File(ProjectPrivate, Base):
    """Its creator sees it, and admins do."""

    __tablename__ = "files"
    __table_args__ = (UniqueConstraint("created_by", "idempotency_key"), Index(None, "created_by", "id"))

    id: Mapped[str] = mapped_column(primary_key=True)  # ids sort by creation time (names.new_id)
    filename: Mapped[str]
    purpose: Mapped[str]  # see files.py
    digest: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    format: Mapped[str]  # TEXT or MULTITASK; "": no rows to learn from
    num_rows: Mapped[int] = mapped_column(BigInteger)
    longest_row_bytes: Mapped[int] = mapped_column(BigInteger)
    created_by: Mapped[str]
    idempotency_key: Mapped[str | None]
    create_time: Mapped[datetime]
    expire_time: Mapped[datetime | None]


class Job(ProjectScoped, Base):
    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("created_by", "idempotency_key"),
        Index(None, "state", "queue_time"),
        # Each ends with the order of listing; the last one is all that a search for a text reads.
        Index(None, "state", "id"),
        Index(None, "created_by", "id"),
        Index(None, "output_model", "id"),
        Index(None, "base", "id"),
        Index(None, "id", "output_model", "base"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)  # ids sort by creation time (names.new_id)
    spec: Mapped[dict[str, Any]]  # see job_specs.py
    state: Mapped[str] = mapped_column(default=PENDING)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    pause_requested: Mapped[bool] = mapped_column(default=False)  # of a RUNNING job
    priority: Mapped[str] = mapped_column(default="NORMAL")  # LOW, NORMAL, HIGH
    queue_time: Mapped[datetime]  # by which PENDING jobs are taken, the earliest first: see job_queue.py
    created_by: Mapped[str]
    idempotency_key: Mapped[str | None]
    deploy_alias: Mapped[str] = mapped_column(default="")
    create_time: Mapped[datetime]
    start_time: Mapped[datetime | None]
    end_time: Mapped[datetime | None]
    wake_time: Mapped[datetime]  # when its newest wake-up was put into the outbox
    attempts: Mapped[int] = mapped_column(default=0)  # leases taken
    lost_leases: Mapped[int] = mapped_column(default=0)  # leases that expired
    fencing_token: Mapped[int] = mapped_column(default=0)  # of the newest lease
    holder: Mapped[str | None]  # worker with the newest lease; null once given back or lost
    lease_expires: Mapped[datetime | None]
    last_sequence: Mapped[int] = mapped_column(default=0)  # of its newest event
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    model_version: Mapped[str | None]
    made: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # by a job that makes no version
    estimate: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # see estimates.py
    energy: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # see job_energy.py
    log_end: Mapped[int] = mapped_column(BigInteger, default=0)  # characters printed so far: see job_logs.py
    fine_tuning: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # see fine_tunings.py
    output_model: Mapped[str] = mapped_column(default="")  # the spec's, to be searched
    base: Mapped[str] = mapped_column(default="")

    @property
    def ended(self) -> bool:
        return self.state in ENDED


class JobDataset(Base):
    """What a job learns from, to be searched."""

    __tablename__ = "job_datasets"
    __table_args__ = (Index(None, "dataset", "job_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    dataset: Mapped[str] = mapped_column(primary_key=True)


class JobEvent(Base):
    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[datetime]
    kind: Mapped[str]  # "state", "progress", "message"
    body: Mapped[dict[str, Any]]  # {"state": …}, the progress, {"message": …}


class Wakeup(Base):
    """The outbox: a message that the relay still has to send, written with what it tells about."""

    __tablename__ = "outbox"
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012 (an id is never given to a second wake-up)

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    create_time: Mapped[datetime]


class JobLogPart(Base):
    """Whole lines of what a job's processes printed; the oldest parts go (see job_logs.py)."""

    __tablename__ = "job_log_parts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    start: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)  # characters before it
    text: Mapped[str]


class StateChange(Base):
    """The outbox of webhooks: a job's state event for which the deliveries have still to be written."""

    __tablename__ = "state_changes"
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    sequence: Mapped[int]
    state: Mapped[str]
    time: Mapped[datetime]


class Webhook(ProjectPrivate, Base):
    __tablename__ = "webhooks"
    __table_args__ = (Index(None, "created_by"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    url: Mapped[str]
    event_types: Mapped[list[str]]  # "job.succeeded", ...; empty: all
    created_by: Mapped[str]
    create_time: Mapped[datetime]


class WebhookDelivery(Base):
    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("webhook_id", "job_id", "sequence"),
        Index(None, "webhook_id", "id"),
        Index(None, "state", "next_time"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)  # the header webhook-id; sorts as the changes of state came
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    sequence: Mapped[int]  # of the job's event
    event_type: Mapped[str]
    body: Mapped[str]  # as it is sent and signed
    state: Mapped[str] = mapped_column(default=PENDING)  # PENDING, DELIVERED, FAILED
    attempts: Mapped[int] = mapped_column(default=0)
    status_code: Mapped[int | None]  # of the last attempt; null: no answer
    error: Mapped[str] = mapped_column(default="")
    create_time: Mapped[datetime]
    last_time: Mapped[datetime | None]  # of the last attempt
    next_time: Mapped[datetime | None]  # not before; while an attempt is under way: when it counts as lost


class Deployment(ProjectScoped, Base):
    __tablename__ = "deployments"

    name: Mapped[str] = mapped_column(primary_key=True)
    target: Mapped[str]  # an alias, or "<model>@<number>"
    serving: Mapped[str | None] = mapped_column(ForeignKey("model_versions.name"))  # null: no heartbeat since it is
    replicas: Mapped[int]  # 0: all workers
    create_time: Mapped[datetime]


class Worker(Base):
    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    address: Mapped[str]
    device: Mapped[str]
    models: Mapped[list[dict[str, Any]]]  # version, state, error, max_sequence_tokens, load
    lease_expires: Mapped[datetime]


class ApiKey(ProjectPrivate, Base):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    principal: Mapped[str]
    role: Mapped[str]  # of services.common.access.ROLES
    digest: Mapped[str] = mapped_column(unique=True)  # HMAC-SHA256 of the key under the pepper
    create_time: Mapped[datetime]
    revoke_time: Mapped[datetime | None]
    label: Mapped[str] = mapped_column(default="")
    scopes: Mapped[list[str]] = mapped_column(default=list)  # permissions; empty: all of the role's
    expire_time: Mapped[datetime | None]
    last_used_time: Mapped[datetime | None]  # to about a minute


class AuditEntry(ProjectPrivate, Base):
    """What was done, by whom (see audit.py). Triggers refuse to change or delete a row."""

    __tablename__ = "audit_entries"
    __table_args__ = (
        Index(None, "principal", "id"),
        Index(None, "action", "id"),
        Index(None, "resource", "id"),
        Index(None, "time"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[datetime]
    principal: Mapped[str]
    key_id: Mapped[str]
    action: Mapped[str]
    resource: Mapped[str]
    outcome: Mapped[str]
    value: Mapped[str]


class Upload(Base):
    """An artifact that is being sent, or was within the grace of uploads.py. Its staged file says how far it is."""

    __tablename__ = "uploads"
    __table_args__ = (Index(None, "principal"), Index(None, "digest"))

    id: Mapped[str] = mapped_column(primary_key=True)
    principal: Mapped[str]
    digest: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)  # as the sender states it
    create_time: Mapped[datetime]
    finish_time: Mapped[datetime | None]  # when it was found to be in the store


class Licence(Base):
    """Rows are never updated."""

    __tablename__ = "licences"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    text: Mapped[str]
    digest: Mapped[str]  # of the text
    must_accept: Mapped[bool]
    create_time: Mapped[datetime]


class LicenceAcceptance(ProjectPrivate, Base):
    """Who accepted which text, when, with which API key. Rows are never updated."""

    __tablename__ = "licence_acceptances"
    __table_args__ = (UniqueConstraint("principal", "licence", "digest"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    principal: Mapped[str]
    licence: Mapped[str] = mapped_column(ForeignKey("licences.id"))
    digest: Mapped[str]
    key_id: Mapped[str]
    time: Mapped[datetime]


class LicensedFile(Base):
    """A licence under which some version has this artifact among its files."""

    __tablename__ = "licensed_files"

    digest: Mapped[str] = mapped_column(primary_key=True)
    licence: Mapped[str] = mapped_column(primary_key=True)


class EvaluationSuite(ProjectScoped, Base):
    """What versions are measured by (see evaluations/suites.py). Rows are never updated."""

    __tablename__ = "evaluation_suites"
    __table_args__ = (UniqueConstraint("family", "number"),)

    name: Mapped[str] = mapped_column(primary_key=True)  # "<family>@<number>"
    family: Mapped[str]
    number: Mapped[int]
    kind: Mapped[str]  # BITS_PER_BYTE, BENCHMARK or LM_EVAL
    description: Mapped[str]
    datasets: Mapped[list[dict[str, Any]]]  # whose rows it has: name, format, digest, languages
    sequence_length: Mapped[int]  # BITS_PER_BYTE: tokens; else 0
    task: Mapped[str]  # BENCHMARK
    metrics: Mapped[list[dict[str, Any]]]  # name, higher_is_better
    harness: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # LM_EVAL: evaluations/harness.py
    published: Mapped[bool]
    created_by: Mapped[str]  # "": came with a release
    create_time: Mapped[datetime]


class Evaluation(ProjectScoped, Base):
    """A suite's results for a version, or published ones for a model: its project's who measured, or the version's.
    Rows are never updated.
    """

    __tablename__ = "evaluations"
    __table_args__ = (Index(None, "version", "suite"), Index(None, "model"))

    id: Mapped[str] = mapped_column(primary_key=True)  # ids sort by creation time; published ones come after all others
    model: Mapped[str] = mapped_column(ForeignKey("models.name"))
    version: Mapped[str | None] = mapped_column(ForeignKey("model_versions.name"))  # null: published
    suite: Mapped[str] = mapped_column(ForeignKey("evaluation_suites.name"))
    source: Mapped[str]  # JOB, REPORTED or PUBLISHED
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    reference: Mapped[str]
    documents: Mapped[str | None]  # JOB: digest of what each text took (see evaluations/documents.py)
    created_by: Mapped[str]
    create_time: Mapped[datetime]


class EvaluationResult(Base):
    __tablename__ = "evaluation_results"

    evaluation: Mapped[str] = mapped_column(ForeignKey("evaluations.id"), primary_key=True)
    language: Mapped[str] = mapped_column(primary_key=True)
    metric: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float]
    n: Mapped[int | None] = mapped_column(BigInteger)
    standard_error: Mapped[float | None]


class AliasGate(Base):
    """What a version must not lose before an alias moves to it (see evaluations/gate_check.py)."""

    __tablename__ = "alias_gates"

    alias: Mapped[str] = mapped_column(ForeignKey("aliases.name"), primary_key=True)
    suite: Mapped[str] = mapped_column(ForeignKey("evaluation_suites.name"))
    languages: Mapped[list[str]]  # empty: all that the version before was measured in
    max_regression_percent: Mapped[float]
    created_by: Mapped[str]
    create_time: Mapped[datetime]
