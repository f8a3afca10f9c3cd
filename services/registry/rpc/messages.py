"""Rows and domain values <-> messages."""

import math
from collections.abc import Iterable
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

from anthesis.v1 import job_pb2, registry_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.access import ROLES, Permission
from services.common.artifacts import Stored
from services.common.auth import Principal
from services.common.errors import InvalidArgument
from services.registry import tables
from services.registry.audit import AuditQuery
from services.registry.checkpoints import File
from services.registry.dataset_preview import PreviewRow
from services.registry.deployments import DeploymentStatus, ReadyWorker
from services.registry.fine_tunings import FineTuning
from services.registry.job_energy import SOURCES, Energy, energy_of
from services.registry.job_specs import (
    AnyJobSpec,
    CheckpointSource,
    CleanCorpusSpec,
    EvaluateSpec,
    FineTuneSpec,
    ImportModelSpec,
    JobSpec,
    LoraOptions,
    PretrainSpec,
    TrainOptions,
    TrainTokenizerSpec,
    ValidateDatasetSpec,
    spec_from_row,
)
from services.registry.leases import Failed, Measured, Outcome, Stopped, Succeeded
from services.registry.pages import PageRequest
from services.registry.uploads import Unfinished
from services.registry.verification import Verified

_ROLES = {name: registry_pb2.Role.Value(f"ROLE_{name.upper()}") for name in ROLES}
_PERMISSIONS = {name: registry_pb2.Permission.Value(f"PERMISSION_{name.name}") for name in Permission}
_LOSS = [field.name for field in job_pb2.ValidationLoss.DESCRIPTOR.fields]
_PROGRESS = [
    field.name for field in job_pb2.TrainingProgress.DESCRIPTOR.fields if field.name not in ("time", "validation")
]


def page_request(request: Any) -> PageRequest:
    return PageRequest(request.page_size, request.page_token)


def timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    message = Timestamp()
    message.FromDatetime(time)
    return message


def read_time(message: Timestamp, name: str) -> datetime:
    """Raises InvalidArgument for a time that no calendar has."""
    try:
        return message.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument(
            f"{name} has {message.seconds} seconds and {message.nanos} nanoseconds since 1970, which is no time of the "
            "years 1 to 9999"
        ) from None


def enum_name(enum: Any, prefix: str, value: int) -> str:
    """A value's name without its prefix; "" for UNSPECIFIED and for values of a newer contract."""
    name = str(enum.Name(value)).removeprefix(prefix) if value in enum.values() else ""
    return "" if name == "UNSPECIFIED" else name


def model(row: tables.Model) -> registry_pb2.Model:
    return registry_pb2.Model(
        name=row.name,
        project=row.project,
        description=row.description,
        licence=row.licence,
        languages=row.languages,
        config_json=row.config_json,
        base_model=row.base_model,
        latest_version=row.latest_version,
        create_time=timestamp(row.create_time),
        in_catalogue=row.in_catalogue,
        parameters=row.parameters,
        tags=row.tags,
        created_by=row.created_by,
        delete_time=timestamp(row.delete_time),
        deleted_by=row.deleted_by,
    )


def version(row: tables.ModelVersion) -> registry_pb2.ModelVersion:
    return registry_pb2.ModelVersion(
        model=row.model,
        number=row.number,
        name=row.name,
        project=row.project,
        licence=row.licence,
        tokenizer_digest=row.tokenizer_digest,
        files=[registry_pb2.ModelFile(**file) for file in row.files],
        config_json=row.config_json,
        parameters=row.parameters,
        size_bytes=row.size_bytes,
        parent=row.parent or "",
        other_parents=row.other_parents,
        job_id=row.job_id or "",
        datasets=row.datasets,
        create_time=timestamp(row.create_time),
        source=row.source,
        state=registry_pb2.VersionState.Value(f"VERSION_STATE_{row.state}"),
        tags=row.tags,
        created_by=row.created_by,
        delete_time=timestamp(row.delete_time),
        deleted_by=row.deleted_by,
        expire_time=timestamp(row.expire_time),
    )


def files(messages: Iterable[registry_pb2.ModelFile]) -> tuple[File, ...]:
    return tuple(File(path=message.path, digest=message.digest) for message in messages)


def worker(ready: ReadyWorker) -> registry_pb2.Worker:
    return registry_pb2.Worker(
        id=ready.worker.id,
        address=ready.worker.address,
        device=ready.worker.device,
        max_sequence_tokens=ready.max_sequence_tokens,
        load=ready.load,
    )


def worker_models(messages: Iterable[registry_pb2.WorkerModel]) -> list[dict[str, Any]]:
    names = ("version", "state", "error", "max_sequence_tokens", "load")
    return [{name: getattr(message, name) for name in names} for message in messages]


def dataset(row: tables.Dataset) -> registry_pb2.Dataset:
    return registry_pb2.Dataset(
        name=row.dataset,
        version=row.number,
        project=row.project,
        format=registry_pb2.DatasetFormat.Value(f"DATASET_FORMAT_{row.format}"),
        digest=row.digest,
        num_rows=row.num_rows,
        size_bytes=row.size_bytes,
        languages=row.languages,
        create_time=timestamp(row.create_time),
        created_by=row.created_by,
        report_digest=row.report_digest or "",
        report_job_id=row.report_job_id or "",
    )


def dataset_of_job(row: tables.Dataset) -> registry_pb2.Dataset:
    """Under the name that the job's spec has."""
    message = dataset(row)
    message.name = row.name
    return message


def preview_row(row: PreviewRow) -> registry_pb2.PreviewRow:
    fields = [registry_pb2.PreviewField(**asdict(found)) for found in row.fields]
    return registry_pb2.PreviewRow(number=row.number, fields=fields)


def upload(found: Unfinished) -> registry_pb2.Upload:
    row = found.upload
    return registry_pb2.Upload(
        id=row.id,
        digest=row.digest,
        size_bytes=row.size_bytes,
        received_bytes=found.received,
        create_time=timestamp(row.create_time),
        expire_time=timestamp(found.expires),
        being_sent=found.is_sent,
    )


def verified(found: Verified) -> registry_pb2.VerifyArtifactsResponse:
    return registry_pb2.VerifyArtifactsResponse(
        artifact=registry_pb2.Artifact(digest=found.digest, size_bytes=found.size_bytes),
        state=registry_pb2.ArtifactState.Value(f"ARTIFACT_STATE_{found.state}"),
        needed_by=found.needed_by,
    )


def garbage(stored: Stored, *, deleted: bool) -> registry_pb2.CollectGarbageResponse:
    return registry_pb2.CollectGarbageResponse(
        name=stored.name,
        size_bytes=stored.size_bytes,
        modify_time=timestamp(stored.modify_time),
        deleted=deleted,
    )


def deployment(status: DeploymentStatus) -> registry_pb2.Deployment:
    return registry_pb2.Deployment(
        name=status.deployment.name,
        project=status.deployment.project,
        target=status.deployment.target,
        replicas=status.deployment.replicas,
        create_time=timestamp(status.deployment.create_time),
        version=status.version,
        ready_replicas=status.ready_replicas,
        errors=status.errors,
        serving_version=status.serving,
    )


def api_key(row: tables.ApiKey) -> registry_pb2.ApiKey:
    return registry_pb2.ApiKey(
        id=row.id,
        project=row.project,
        principal=row.principal,
        role=_ROLES[row.role],
        create_time=timestamp(row.create_time),
        revoke_time=timestamp(row.revoke_time),
        label=row.label,
        scopes=[_PERMISSIONS[Permission(scope)] for scope in row.scopes],
        expire_time=timestamp(row.expire_time),
        last_used_time=timestamp(row.last_used_time),
    )


def scopes(numbers: Iterable[int]) -> list[str]:
    """Names of permissions. Raises InvalidArgument for one that there is not."""
    names = [enum_name(registry_pb2.Permission, "PERMISSION_", number).lower() for number in numbers]
    if "" in names:
        raise InvalidArgument(f"scopes has a permission that is not known; choose from {', '.join(Permission)}")
    return names


def authenticated(principal: Principal) -> registry_pb2.AuthenticateResponse:
    return registry_pb2.AuthenticateResponse(
        key_id=principal.key_id,
        project=principal.project,
        principal=principal.name,
        role=_ROLES[principal.role],
        scopes=[_PERMISSIONS[Permission(scope)] for scope in sorted(principal.scopes)],
        expire_time=timestamp(principal.expire_time),
    )


def audit_query(request: registry_pb2.ListAuditEntriesRequest) -> AuditQuery:
    return AuditQuery(
        principal=request.principal,
        action=request.action,
        resource=request.resource,
        start=read_time(request.start_time, "start_time") if request.HasField("start_time") else None,
        end=read_time(request.end_time, "end_time") if request.HasField("end_time") else None,
    )


def audit_entry(row: tables.AuditEntry) -> registry_pb2.AuditEntry:
    return registry_pb2.AuditEntry(
        id=row.id,
        project=row.project,
        time=timestamp(row.time),
        principal=row.principal,
        key_id=row.key_id,
        action=row.action,
        resource=row.resource,
        outcome=row.outcome,
        value=row.value,
    )


def job(row: tables.Job) -> job_pb2.Job:
    spec = spec_from_row(row.spec)
    return job_pb2.Job(
        id=row.id,
        project=row.project,
        pretrain=_pretrain(spec) if isinstance(spec, PretrainSpec) else None,
        fine_tune=_fine_tune(spec) if isinstance(spec, FineTuneSpec) else None,
        validate_dataset=(
            job_pb2.ValidateDatasetSpec(**asdict(spec)) if isinstance(spec, ValidateDatasetSpec) else None
        ),
        evaluate=_evaluate(spec) if isinstance(spec, EvaluateSpec) else None,
        train_tokenizer=job_pb2.TrainTokenizerSpec(**asdict(spec)) if isinstance(spec, TrainTokenizerSpec) else None,
        clean_corpus=job_pb2.CleanCorpusSpec(**asdict(spec)) if isinstance(spec, CleanCorpusSpec) else None,
        import_model=job_pb2.ImportModelSpec(**asdict(spec)) if isinstance(spec, ImportModelSpec) else None,
        **(row.made or {}),
        state=job_pb2.JobState.Value(f"JOB_STATE_{row.state}"),
        cancel_requested=row.cancel_requested,
        create_time=timestamp(row.create_time),
        start_time=timestamp(row.start_time),
        end_time=timestamp(row.end_time),
        attempts=row.attempts,
        progress=progress(row.progress) if row.progress else None,
        error=job_pb2.JobError(**row.error) if row.error else None,
        model_version=row.model_version or "",
        created_by=row.created_by,
        estimate=job_pb2.JobEstimate(**row.estimate) if row.estimate else None,
        pause_requested=row.pause_requested,
        priority=job_pb2.JobPriority.Value(f"JOB_PRIORITY_{row.priority}"),
        fine_tuning=job_pb2.FineTuning(**row.fine_tuning) if row.fine_tuning else None,
        last_sequence=row.last_sequence,
        energy=_energy(energy_of(row.energy)),
    )


def _energy(energy: Energy | None) -> job_pb2.Energy | None:
    if energy is None:
        return None
    joules: dict[str, Any] = energy.joules
    return job_pb2.Energy(**joules, unmeasured=energy.unmeasured, attempts=energy.attempts)


def read_energy(message: job_pb2.Energy) -> Energy:
    joules = {field.name: value for field, value in message.ListFields() if field.name in SOURCES}
    return Energy(joules=joules, unmeasured=tuple(message.unmeasured))


def _pretrain(spec: PretrainSpec) -> job_pb2.PretrainSpec:
    return job_pb2.PretrainSpec(
        output_model=spec.output_model,
        licence=spec.licence,
        tokenizer_digest=spec.tokenizer_digest,
        datasets=spec.datasets,
        config=spec.config,
        options=_options(spec.options),
        validation_datasets=spec.validation_datasets,
        from_checkpoint=_source(spec),
    )


def _fine_tune(spec: FineTuneSpec) -> job_pb2.FineTuneSpec:
    lora = spec.lora
    return job_pb2.FineTuneSpec(
        output_model=spec.output_model,
        base=spec.base,
        datasets=spec.datasets,
        options=_options(spec.options),
        lora=job_pb2.LoraOptions(**asdict(lora)) if lora else None,
        validation_datasets=spec.validation_datasets,
        evaluate_with=spec.evaluate_with,
        from_checkpoint=_source(spec),
    )


def _evaluate(spec: EvaluateSpec) -> job_pb2.EvaluateSpec:
    return job_pb2.EvaluateSpec(version=spec.version, suite=spec.suite)


def _options(options: TrainOptions) -> job_pb2.TrainOptions:
    return job_pb2.TrainOptions(**{item.name: getattr(options, item.name) for item in fields(options)})


def job_spec(request: job_pb2.CreateJobRequest) -> AnyJobSpec:
    """Raises InvalidArgument when the request has none."""
    match request.WhichOneof("spec"):
        case "pretrain":
            pretrain = request.pretrain
            return PretrainSpec(
                output_model=pretrain.output_model,
                licence=pretrain.licence,
                tokenizer_digest=pretrain.tokenizer_digest,
                datasets=list(pretrain.datasets),
                config=pretrain.config,
                options=read_options(pretrain.options),
                validation_datasets=list(pretrain.validation_datasets),
                from_checkpoint=_read_source(pretrain),
            )
        case "fine_tune":
            tune = request.fine_tune
            lora = LoraOptions(**{field.name: value for field, value in tune.lora.ListFields()})
            return FineTuneSpec(
                output_model=tune.output_model,
                base=tune.base,
                datasets=list(tune.datasets),
                options=read_options(tune.options),
                lora=lora if tune.HasField("lora") else None,
                validation_datasets=list(tune.validation_datasets),
                evaluate_with=tune.evaluate_with,
                from_checkpoint=_read_source(tune),
            )
        case "validate_dataset":
            asked = request.validate_dataset
            return ValidateDatasetSpec(
                dataset=asked.dataset,
                tokenizer_digest=asked.tokenizer_digest,
                base=asked.base,
                sequence_length=asked.sequence_length,
                held_out=list(asked.held_out),
            )
        case "evaluate":
            return EvaluateSpec(version=request.evaluate.version, suite=request.evaluate.suite)
        case "train_tokenizer":
            train = request.train_tokenizer
            return TrainTokenizerSpec(
                datasets=list(train.datasets), vocab_size=train.vocab_size, min_frequency=train.min_frequency
            )
        case "clean_corpus":
            clean = request.clean_corpus
            return CleanCorpusSpec(
                datasets=list(clean.datasets),
                output_dataset=clean.output_dataset,
                default_language=clean.default_language,
                keep_near_duplicates=clean.keep_near_duplicates,
                keep_foreign_lines=clean.keep_foreign_lines,
                personal_information=list(clean.personal_information),
            )
        case "import_model":
            return ImportModelSpec(model=request.import_model.model, licence=request.import_model.licence)
    kinds = ", ".join(field.name for field in request.DESCRIPTOR.oneofs_by_name["spec"].fields)
    raise InvalidArgument(f"the request has no spec; set one of {kinds}")


def _source(spec: JobSpec) -> job_pb2.CheckpointSource | None:
    source = spec.from_checkpoint
    return job_pb2.CheckpointSource(job_id=source.job_id, step=source.step) if source else None


def _read_source(message: job_pb2.PretrainSpec | job_pb2.FineTuneSpec) -> CheckpointSource | None:
    source = message.from_checkpoint
    return CheckpointSource(job_id=source.job_id, step=source.step) if message.HasField("from_checkpoint") else None


def read_fine_tuning(request: job_pb2.CreateJobRequest) -> FineTuning | None:
    asked = request.fine_tuning
    values = {field.name: getattr(asked, field.name) for field in asked.DESCRIPTOR.fields}
    return values | {"metadata": dict(asked.metadata)} if request.HasField("fine_tuning") else None


def read_options(message: job_pb2.TrainOptions) -> TrainOptions:
    values = {field.name: value for field, value in message.ListFields()}
    return TrainOptions(**values | {"auto": list(message.auto)})


def progress(row: dict[str, Any]) -> job_pb2.TrainingProgress:
    values: dict[str, Any] = {name: row[name] for name in _PROGRESS if name in row}  # older releases kept fewer
    values |= {name: float(value) for name, value in values.items() if isinstance(value, str)}
    losses = [_validation_loss(loss) for loss in row.get("validation", ())]
    return job_pb2.TrainingProgress(**values, validation=losses, time=timestamp(datetime.fromisoformat(row["time"])))


def _validation_loss(row: dict[str, Any]) -> job_pb2.ValidationLoss:
    return job_pb2.ValidationLoss(**row | {"bits_per_byte": float(row["bits_per_byte"])})


def read_progress(messages: Iterable[job_pb2.TrainingProgress], now: datetime) -> list[dict[str, Any]]:
    """Progress as it is kept; one without a time happened now.

    JSON has no NaN and no infinity, which a diverging loss is: they are kept as strings.
    """
    rows = []
    for message in messages:
        time = read_time(message.time, "progress.time") if message.HasField("time") else now
        losses = [_plain(loss, _LOSS) for loss in message.validation]
        rows.append(_plain(message, _PROGRESS) | {"validation": losses, "time": time.isoformat()})
    return rows


def _plain(message: Any, names: list[str]) -> dict[str, Any]:
    values = {name: getattr(message, name) for name in names}
    return {
        name: value if isinstance(value, str) or math.isfinite(value) else str(value) for name, value in values.items()
    }


def job_event(row: tables.JobEvent) -> job_pb2.JobEvent:
    event = job_pb2.JobEvent(sequence=row.sequence, time=timestamp(row.time))
    match row.kind:
        case "state":
            event.state = job_pb2.JobState.Value(f"JOB_STATE_{row.body['state']}")
        case "progress":
            event.progress.CopyFrom(progress(row.body))
        case "message":
            event.message = row.body["message"]
    return event


def outcome(request: job_pb2.FinishJobRequest) -> Outcome:
    """How the job ended. Raises InvalidArgument when the request does not say."""
    match request.WhichOneof("outcome"):
        case "succeeded":
            return Succeeded(files(request.succeeded.files), request.succeeded.measured.documents)
        case "measured":
            return Measured(request.measured.documents)
        case "failed":
            return Failed(request.failed.code, request.failed.message, request.failed.parameter)
        case "cancelled":
            return Stopped()
    raise InvalidArgument("the request has no outcome; set succeeded, measured, failed or cancelled")
