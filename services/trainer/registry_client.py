"""JobService as the trainer sees it: protobuf in and out, plain Python between. Errors are the SDK's typed ones."""

import dataclasses
import struct
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import grpc
from anthesis.channel import open_channel
from anthesis.errors import from_rpc
from anthesis.v1 import evaluation_pb2, job_pb2, job_pb2_grpc, registry_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from bloom.layout import Layout
from services.common.settings import Platform
from services.trainer.clean_corpus import CleanSpec
from services.trainer.config import DatasetFormat, DatasetSpec, LoraConfig, RunSpec, TrainConfig
from services.trainer.dataset_report.spec import ReportSpec
from services.trainer.energy import Energy
from services.trainer.evaluation import EvaluationSpec
from services.trainer.failure import JobFailure
from services.trainer.harness.spec import HarnessSpec, HarnessTask
from services.trainer.import_model import ImportSpec
from services.trainer.processes import boot_clock
from services.trainer.progress import Progress
from services.trainer.train_tokenizer import MIN_FREQUENCY, TokenizerSpec

CALL_TIMEOUT_S = 10.0
FINISH_TIMEOUT_S = 120.0  # the registry reads the exported headers first
FORMATS: dict[int, DatasetFormat] = {
    registry_pb2.DATASET_FORMAT_TEXT: "text",
    registry_pb2.DATASET_FORMAT_MULTITASK: "multitask",
    registry_pb2.DATASET_FORMAT_FIELDS: "fields",
    registry_pb2.DATASET_FORMAT_BLEND: "blend",
    registry_pb2.DATASET_FORMAT_MIXTURE: "mixture",
}
FINE_TUNE_LEARNING_RATE = 2e-5
DEFAULT_EPOCHS = 1.0
# Of jobs that a trainer runs.
KINDS = ("pretrain", "fine_tune", "evaluate", "validate_dataset", "train_tokenizer", "clean_corpus", "import_model")
AttemptSpec = RunSpec | ReportSpec | TokenizerSpec | CleanSpec | ImportSpec
MAX_EXCEPT = 1000  # jobs that the registry passes over for us
MAX_REASONS, MAX_REASON = 10, 300  # that the registry takes; characters


@dataclass(frozen=True, slots=True)
class Assignment:
    """A lease and the job it is for."""

    job_id: str
    attempt: int
    fencing_token: int
    ttl_s: float
    asked: float  # boot_clock() before the lease was asked for: it ends ttl_s later, or a little after
    spec: Callable[[], AttemptSpec] | None  # raises JobFailure for what is not built; None: it only measures
    log_end: int = 0  # characters of the job's log that the registry has
    evaluation: EvaluationSpec | HarnessSpec | None = None  # what is to be measured, after training if there is any


@dataclass(frozen=True, slots=True)
class Report:
    """What is said with a renewal of the lease."""

    progress: Sequence[Progress]
    messages: Sequence[str]
    printed: tuple[int, str]  # position in the job's log, text
    energy: Energy  # of the attempt so far


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a running job's users want of it."""

    cancel: bool = False
    pause: bool = False


class RegistryClient:
    def __init__(self, platform: Platform, api_key: str) -> None:
        self._platform = platform
        self._jobs = job_pb2_grpc.JobServiceStub(open_channel(platform.registry_address, api_key))

    def acquire(self, job_id: str, worker_id: str, but: Collection[str] = ()) -> Assignment:
        """The lease of `job_id`, or of the job whose turn it is before it; of none in `but`."""
        request = job_pb2.AcquireLeaseRequest(
            job_id=job_id, worker_id=worker_id, kinds=KINDS, except_job_ids=sorted(but)[:MAX_EXCEPT]
        )
        asked = boot_clock()
        response: job_pb2.AcquireLeaseResponse = _call(self._jobs.AcquireLease, request)
        return Assignment(
            job_id=response.job.id,
            attempt=response.job.attempts,
            fencing_token=response.lease.fencing_token,
            ttl_s=response.lease.ttl_seconds,
            asked=asked,
            log_end=response.log_end,
            spec=None if response.job.HasField("evaluate") else lambda: spec_of(response, self._platform),
            evaluation=_measurement(response, self._platform) if response.HasField("suite") else None,
        )

    def renew(self, held: Assignment, report: Report, *, timeout_s: float) -> Wishes:
        """Extend the lease; return what the job's users want."""
        request = job_pb2.RenewLeaseRequest(
            job_id=held.job_id,
            fencing_token=held.fencing_token,
            progress=[_progress_to_proto(item) for item in report.progress],
            messages=report.messages,
            log_offset=report.printed[0],
            log_text=report.printed[1],
            energy=_energy_to_proto(report.energy),
        )
        response = _call(self._jobs.RenewLease, request, timeout_s)
        return Wishes(cancel=response.cancel_requested, pause=response.pause_requested)

    def succeed(
        self, held: Assignment, files: Sequence[tuple[str, str]], progress: Sequence[Progress], documents: str = ""
    ) -> None:
        """End the job with a model: (path, digest) of its files. documents: digest of what was measured of it."""
        model_files = job_pb2.ModelFiles(
            files=[registry_pb2.ModelFile(path=path, digest=digest) for path, digest in files],
            measured=job_pb2.Measured(documents=documents) if documents else None,
        )
        self._finish(held, progress, succeeded=model_files)

    def measured(self, held: Assignment, documents: str, progress: Sequence[Progress]) -> None:
        """End a job that only measures."""
        self._finish(held, progress, measured=job_pb2.Measured(documents=documents))

    def fail(self, held: Assignment, failure: JobFailure, progress: Sequence[Progress]) -> None:
        error = job_pb2.JobError(code=failure.code, message=failure.message, parameter=failure.parameter)
        self._finish(held, progress, failed=error)

    def cancelled(self, held: Assignment, progress: Sequence[Progress]) -> None:
        self._finish(held, progress, cancelled=job_pb2.Cancelled())

    def release(self, held: Assignment, reason: str) -> None:
        """Give the job back, to be tried again."""
        request = job_pb2.ReleaseLeaseRequest(job_id=held.job_id, fencing_token=held.fencing_token, reason=reason)
        _call(self._jobs.ReleaseLease, request)

    def _finish(self, held: Assignment, progress: Sequence[Progress], **outcome: Any) -> None:
        request = job_pb2.FinishJobRequest(
            job_id=held.job_id,
            fencing_token=held.fencing_token,
            progress=[_progress_to_proto(item) for item in progress],
            **outcome,
        )
        _call(self._jobs.FinishJob, request, FINISH_TIMEOUT_S)


def _call(method: Any, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
    try:
        return method(request, timeout=timeout_s)
    except grpc.RpcError as error:
        raise from_rpc(error) from error


def spec_of(response: job_pb2.AcquireLeaseResponse, platform: Platform) -> AttemptSpec:
    """What the processes of this attempt get. Raises JobFailure for what is not built."""
    match response.job.WhichOneof("spec"):
        case "validate_dataset":
            return report_spec(response, platform)
        case "train_tokenizer":
            return tokenizer_spec(response, platform)
        case "clean_corpus":
            return clean_spec(response, platform)
        case "import_model":
            return ImportSpec(
                job_id=response.job.id,
                fencing_token=response.lease.fencing_token,
                model=response.job.import_model.model,
                data_dir=str(platform.data_dir),
                artifacts_url=platform.artifacts_url,
            )
    return run_spec(response, platform)


def tokenizer_spec(response: job_pb2.AcquireLeaseResponse, platform: Platform) -> TokenizerSpec:
    """Of a job that trains a tokenizer."""
    job, asked = response.job, response.job.train_tokenizer
    return TokenizerSpec(
        job_id=job.id,
        fencing_token=response.lease.fencing_token,
        digests=tuple(dataset.digest for dataset in response.datasets),
        vocab_size=asked.vocab_size,
        min_frequency=asked.min_frequency or MIN_FREQUENCY,
        data_dir=str(platform.data_dir),
        artifacts_url=platform.artifacts_url,
    )


def report_spec(response: job_pb2.AcquireLeaseResponse, platform: Platform) -> ReportSpec:
    """Of a job that reports on a dataset."""
    job, asked = response.job, response.job.validate_dataset
    dataset, *held_out = _datasets(response)
    return ReportSpec(
        job_id=job.id,
        fencing_token=response.lease.fencing_token,
        dataset=dataset,
        held_out=tuple(held_out),
        tokenizer_digest=asked.tokenizer_digest,
        sequence_length=asked.sequence_length,
        data_dir=str(platform.data_dir),
        artifacts_url=platform.artifacts_url,
    )


def clean_spec(response: job_pb2.AcquireLeaseResponse, platform: Platform) -> CleanSpec:
    """Of a job that cleans text."""
    job, asked = response.job, response.job.clean_corpus
    return CleanSpec(
        job_id=job.id,
        fencing_token=response.lease.fencing_token,
        digests=tuple(dataset.digest for dataset in response.datasets),
        default_language=asked.default_language,
        near_duplicates=not asked.keep_near_duplicates,
        foreign_lines=not asked.keep_foreign_lines,
        personal_information=tuple(asked.personal_information),
        data_dir=str(platform.data_dir),
        artifacts_url=platform.artifacts_url,
    )


def _datasets(response: job_pb2.AcquireLeaseResponse) -> list[DatasetSpec]:
    return [DatasetSpec(name=item.name, format=FORMATS[item.format], digest=item.digest) for item in response.datasets]


def run_spec(response: job_pb2.AcquireLeaseResponse, platform: Platform) -> RunSpec:
    """Of a job that trains. Raises JobFailure for what is not built."""
    job = response.job
    datasets = _datasets(response)
    if job.WhichOneof("spec") == "fine_tune":
        tune = job.fine_tune
        lora = tune.lora if tune.HasField("lora") else None
        config = train_config(tune.options, lora, {"learning_rate": FINE_TUNE_LEARNING_RATE})
        tokenizer, model_config = response.base.tokenizer_digest, ""
    else:
        config = train_config(job.pretrain.options, None, {})
        tokenizer, model_config = job.pretrain.tokenizer_digest, job.pretrain.config
    validation = {*job.pretrain.validation_datasets, *job.fine_tune.validation_datasets}  # one of them is set
    source = (job.fine_tune if job.HasField("fine_tune") else job.pretrain).from_checkpoint
    return RunSpec(
        from_job=source.job_id,
        from_step=source.step,
        job_id=job.id,
        attempt=job.attempts,
        fencing_token=response.lease.fencing_token,
        config=config,
        datasets=tuple(dataset for dataset in datasets if dataset.name not in validation),
        validation=tuple(dataset for dataset in datasets if dataset.name in validation),
        tokenizer_digest=tokenizer,
        model_config=model_config,
        base=response.base.name,
        base_files=tuple((file.path, file.digest) for file in response.base.files),
        data_dir=str(platform.data_dir),
        artifacts_url=platform.artifacts_url,
    )


def _measurement(response: job_pb2.AcquireLeaseResponse, platform: Platform) -> EvaluationSpec | HarnessSpec:
    is_harness = response.suite.kind == evaluation_pb2.SUITE_KIND_LM_EVAL
    return harness_spec(response, platform) if is_harness else evaluation_spec(response, platform)


def harness_spec(response: job_pb2.AcquireLeaseResponse, platform: Platform) -> HarnessSpec:
    """What is to be asked of the version that an evaluation names."""
    suite, base = response.suite, response.base
    datasets = {
        item.name: DatasetSpec(name=item.name, format=FORMATS[item.format], digest=item.digest)
        for item in suite.datasets
    }
    return HarnessSpec(
        job_id=response.job.id,
        fencing_token=response.lease.fencing_token,
        project=response.job.project,
        suite=suite.name,
        version=base.name,
        tasks=tuple(
            HarnessTask(
                name=task.name,
                language=task.language,
                dataset=datasets[task.dataset] if task.dataset else None,
                jinja=task.jinja,
                answer_choices=task.answer_choices,
            )
            for task in suite.tasks
        ),
        metrics=tuple(metric.name for metric in suite.metrics),
        num_fewshot=suite.num_fewshot,
        limit=suite.limit,
        tokenizer_digest=base.tokenizer_digest,
        gateway_url=f"http://{platform.gateway_http_address}",
        data_dir=str(platform.data_dir),
        artifacts_url=platform.artifacts_url,
    )


def evaluation_spec(response: job_pb2.AcquireLeaseResponse, platform: Platform) -> EvaluationSpec:
    """What is to be measured: the version that an evaluation names, or what a fine-tune will have trained."""
    suite, base = response.suite, response.base
    files = tuple((file.path, file.digest) for file in base.files) if response.job.HasField("evaluate") else ()
    return EvaluationSpec(
        job_id=response.job.id,
        fencing_token=response.lease.fencing_token,
        suite=suite.name,
        datasets=tuple(
            DatasetSpec(name=item.name, format=FORMATS[item.format], digest=item.digest) for item in suite.datasets
        ),
        sequence_length=suite.sequence_length,
        tokenizer_digest=base.tokenizer_digest,
        files=files,
        data_dir=str(platform.data_dir),
        artifacts_url=platform.artifacts_url,
    )


def train_config(
    options: job_pb2.TrainOptions, lora: job_pb2.LoraOptions | None, defaults: dict[str, Any]
) -> TrainConfig:
    """The options that were set, over `defaults`, over TrainConfig's own."""
    fields = {field.name: value for field, value in options.ListFields()}
    values: dict[str, Any] = {**defaults, **fields}
    values.setdefault("learning_rate", 1e-3)
    values.setdefault("min_learning_rate", _fp32(values["learning_rate"]) / 10)
    if "steps" not in values:
        values.setdefault("epochs", DEFAULT_EPOCHS)
    try:
        values["layout"] = Layout.parse(options.layout or "1x1x1")
    except ValueError as error:
        raise JobFailure("BAD_LAYOUT", str(error), "layout") from error
    if lora is not None:
        set_fields = {field.name: value for field, value in lora.ListFields()}
        values["lora"] = LoraConfig(**set_fields)
    return _as_carried(TrainConfig(**values))


def _as_carried(config: TrainConfig) -> TrainConfig:
    """Every number in fp32, as the contract carries it: a default, and the same number set, make the same run."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    rounded: dict[str, Any] = {name: _fp32(value) for name, value in values.items() if isinstance(value, float)}
    return dataclasses.replace(config, **rounded)


def _fp32(value: float) -> float:
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _energy_to_proto(energy: Energy) -> job_pb2.Energy | None:
    """None before anything is known."""
    if energy == Energy():
        return None
    joules: dict[str, Any] = {f"{source}_joules": value for source, value in energy.joules.items()}
    return job_pb2.Energy(**joules, unmeasured=[reason[:MAX_REASON] for reason in energy.unmeasured[:MAX_REASONS]])


def _progress_to_proto(progress: Progress) -> job_pb2.TrainingProgress:
    time = Timestamp()
    time.FromNanoseconds(int(progress.time * 1e9))
    return job_pb2.TrainingProgress(
        step=progress.step,
        total_steps=progress.total_steps,
        loss=progress.loss,
        learning_rate=progress.learning_rate,
        grad_norm=progress.grad_norm,
        tokens_per_second=progress.tokens_per_second,
        tokens_seen=progress.tokens_seen,
        seconds_left=progress.seconds_left,
        time=time,
        samples_seen=progress.samples_seen,
        model_flops_per_second=progress.model_flops_per_second,
        hardware_flops_per_second=progress.hardware_flops_per_second,
        validation=[job_pb2.ValidationLoss(**asdict(loss)) for loss in progress.validation],
        validation_step=progress.step if progress.validation else 0,
    )
