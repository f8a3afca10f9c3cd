"""What a user may ask a training job to do, and the ranges in which it makes sense (job.proto states them)."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bloom import nf4
from bloom.config import BloomConfig
from bloom.layout import Layout
from bloom.parallel import Shard
from bloom.zero import Zero
from services.common.errors import InvalidArgument

PRECISIONS = ("bf16", "fp16", "fp32")
OPTIMIZERS = ("adamw", "muon")
ROLLBACKS = ("none", "nan", "spike")
LAYOUT = re.compile(r"[1-9]\d{0,4}x[1-9]\d{0,4}x[1-9]\d{0,4}")
CHECKPOINT_EVERY_STEPS = 100  # what the trainer fills in (TrainConfig); a test keeps the two alike
DEFAULT_LICENCE = "apache-2.0"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOptions:
    """None and "" mean the default, which the trainer fills in."""

    steps: int | None = None
    epochs: float | None = None
    learning_rate: float | None = None
    min_learning_rate: float | None = None
    warmup_steps: int | None = None
    sequence_length: int | None = None  # tokens
    micro_batch: int | None = None  # sequences per rank and forward
    gradient_accumulation: int | None = None
    precision: str = ""
    optimizer: str = ""
    muon_learning_rate: float | None = None
    weight_decay: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    clip_grad_norm: float | None = None
    dropout: float | None = None
    bpe_dropout: float | None = None
    seed: int | None = None
    checkpoint_every_steps: int | None = None
    layout: str = ""  # "TPxPPxDP"
    recompute: bool = False
    batch_ramp: str = ""  # "START,INCREMENT,SAMPLES"
    warmup_samples: int | None = None
    decay_samples: int | None = None
    rollback_on: str = ""
    spike_deviations: float | None = None
    keep_every_steps: int | None = None
    keep_last: int | None = None
    normalize_targets: bool = False
    max_examples_per_dataset: int | None = None  # in a pass
    zero_stage: int = 0  # 0: 1
    offload: str = ""  # "optimizer" or "parameters"
    validate_every_steps: int | None = None
    auto: list[str] = field(default_factory=list)  # options that job_auto chooses; none in a job


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraOptions:
    """0 means the default: rank 8, alpha 16."""

    rank: int = 0
    alpha: float = 0.0
    dropout: float = 0.0
    base_weights: str = ""  # or "nf4"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointSource:
    """A checkpoint of another job."""

    job_id: str
    step: int = 0  # 0: the newest


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainSpec:
    output_model: str
    tokenizer_digest: str
    datasets: list[str]
    config: str  # a preset's name, or a config.json
    licence: str = ""
    options: TrainOptions = field(default_factory=TrainOptions)
    validation_datasets: list[str] = field(default_factory=list)
    from_checkpoint: CheckpointSource | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuneSpec:
    output_model: str
    base: str  # anything `resolve` takes; a version's name once the job is created
    datasets: list[str]
    options: TrainOptions = field(default_factory=TrainOptions)
    lora: LoraOptions | None = None
    validation_datasets: list[str] = field(default_factory=list)
    evaluate_with: str = ""  # a suite that measures the version before the job ends
    from_checkpoint: CheckpointSource | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidateDatasetSpec:
    """A report on a dataset's rows, which trains nothing: dataset_reports.py."""

    dataset: str
    tokenizer_digest: str = ""  # "": the base's
    base: str = ""
    sequence_length: int = 0  # tokens; 0: the default
    held_out: list[str] = field(default_factory=list)

    @property
    def datasets(self) -> list[str]:
        return [self.dataset]

    @property
    def validation_datasets(self) -> list[str]:
        return self.held_out


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTokenizerSpec:
    """A tokenizer.json, which is no version of a model: tokenizer_training.py."""

    datasets: list[str]
    vocab_size: int
    min_frequency: int = 0  # 0: the default

    @property
    def validation_datasets(self) -> list[str]:
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class CleanCorpusSpec:
    """A dataset's version, of what is left of others: corpus_cleaning.py."""

    datasets: list[str]
    output_dataset: str
    default_language: str = ""
    keep_near_duplicates: bool = False
    keep_foreign_lines: bool = False
    personal_information: list[str] = field(default_factory=list)  # kinds to redact; empty: all

    @property
    def validation_datasets(self) -> list[str]:
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportModelSpec:
    """A version, of what the Hugging Face hub has."""

    model: str
    licence: str = ""  # "": the model's

    @property
    def output_model(self) -> str:
        return self.model

    @property
    def datasets(self) -> list[str]:
        return []

    @property
    def validation_datasets(self) -> list[str]:
        return []


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateSpec:
    version: str  # anything `resolve` takes; a version's name once the job is created
    suite: str  # as well


JobSpec = PretrainSpec | FineTuneSpec  # what trains a version
VersionSpec = JobSpec | ImportModelSpec  # what makes a version
AnyJobSpec = VersionSpec | EvaluateSpec | ValidateDatasetSpec | TrainTokenizerSpec | CleanCorpusSpec
_KINDS: Mapping[type, str] = {
    PretrainSpec: "pretrain",
    FineTuneSpec: "fine_tune",
    EvaluateSpec: "evaluate",
    ValidateDatasetSpec: "validate_dataset",
    TrainTokenizerSpec: "train_tokenizer",
    CleanCorpusSpec: "clean_corpus",
    ImportModelSpec: "import_model",
}


def spec_to_row(spec: AnyJobSpec) -> dict[str, Any]:
    return {"kind": _KINDS[type(spec)]} | asdict(spec)


def spec_from_row(row: Mapping[str, Any]) -> AnyJobSpec:
    values = {key: value for key, value in row.items() if key != "kind"}
    if row["kind"] == "validate_dataset":
        return ValidateDatasetSpec(**values)
    if row["kind"] == "train_tokenizer":
        return TrainTokenizerSpec(**values)
    if row["kind"] == "clean_corpus":
        return CleanCorpusSpec(**values)
    if row["kind"] == "import_model":
        return ImportModelSpec(**values)
    if row["kind"] == "evaluate":
        return EvaluateSpec(**values)
    values["options"] = TrainOptions(**values["options"])
    if source := values.get("from_checkpoint"):
        values["from_checkpoint"] = CheckpointSource(**source)
    if row["kind"] == "pretrain":
        return PretrainSpec(**values)
    values["lora"] = LoraOptions(**values["lora"]) if values["lora"] is not None else None
    return FineTuneSpec(**values)


def start_of(spec: AnyJobSpec) -> str:
    """The version that a job begins with: the base, or the one to be measured; "": none."""
    match spec:
        case FineTuneSpec():
            return spec.base
        case EvaluateSpec():
            return spec.version
    return ""


def suite_of(spec: AnyJobSpec) -> str:
    """What a job measures by; "": nothing."""
    match spec:
        case FineTuneSpec():
            return spec.evaluate_with
        case EvaluateSpec():
            return spec.suite
    return ""


def aim_of(spec: AnyJobSpec) -> str:
    """What a job is for, in the audit log."""
    if isinstance(spec, EvaluateSpec):
        return f"measures {spec.version} by {spec.suite}"
    if isinstance(spec, ValidateDatasetSpec):
        return f"makes a report on {spec.dataset}"
    if isinstance(spec, TrainTokenizerSpec):
        return f"trains a tokenizer on {', '.join(spec.datasets)}"
    if isinstance(spec, CleanCorpusSpec):
        return f"makes dataset {spec.output_dataset} of {', '.join(spec.datasets)}"
    return f"makes {spec.output_model}"


@dataclass(frozen=True, slots=True)
class Range:
    """An interval as mathematicians write it: Range("(0, 1]")."""

    text: str

    def __contains__(self, value: float) -> bool:
        low, high = (float(bound) for bound in self.text[1:-1].split(","))
        above = value >= low if self.text[0] == "[" else value > low
        return above and (value <= high if self.text[-1] == "]" else value < high)  # false for NaN


RANGES = {
    "steps": Range("[1, 100000000]"),
    "epochs": Range("(0, 100000]"),
    "learning_rate": Range("(0, 1]"),
    "min_learning_rate": Range("[0, 1]"),
    "warmup_steps": Range("[0, 100000000]"),
    "sequence_length": Range("[16, 65536]"),
    "micro_batch": Range("[1, 65536]"),
    "gradient_accumulation": Range("[1, 65536]"),
    "muon_learning_rate": Range("(0, 1]"),
    "weight_decay": Range("[0, 1]"),
    "beta1": Range("[0, 1)"),
    "beta2": Range("[0, 1)"),
    "clip_grad_norm": Range("[0, inf)"),
    "dropout": Range("[0, 1)"),
    "bpe_dropout": Range("[0, 1)"),
    "checkpoint_every_steps": Range("[1, 100000000]"),
    "warmup_samples": Range("[0, 1000000000000]"),
    "decay_samples": Range("[1, 1000000000000]"),
    "spike_deviations": Range("[2, 1000]"),
    "keep_every_steps": Range("[0, 100000000]"),
    "keep_last": Range("[1, 1000]"),
    "max_examples_per_dataset": Range("[1, 1000000000]"),
    "validate_every_steps": Range("[1, 100000000]"),
}
LORA_RANGES = {"rank": Range("[1, 1024]"), "alpha": Range("(0, inf)"), "dropout": Range("[0, 1)")}


def check_options(options: TrainOptions) -> None:
    """Raise InvalidArgument naming the parameter, its value and its range."""
    for name, allowed in RANGES.items():
        _check_range(name, getattr(options, name), allowed)
    if (options.steps is None) == (options.epochs is None):
        got = "neither" if options.steps is None else "both"
        raise InvalidArgument(f"one of steps and epochs says how long to train; got {got}, set exactly one")
    _check_choice("precision", options.precision, PRECISIONS)
    _check_choice("optimizer", options.optimizer, OPTIMIZERS)
    _check_not_above(options, "min_learning_rate", "learning_rate")
    _check_not_above(options, "warmup_steps", "steps")
    _layout(options.layout)
    if options.warmup_samples is not None and options.warmup_steps is not None:
        raise InvalidArgument("warmup_steps and warmup_samples both say how long to warm up; set one")
    _check_not_above(options, "warmup_samples", "decay_samples")
    _check_checkpoints(options)
    _check_zero(options)


def _check_checkpoints(options: TrainOptions) -> None:
    _check_choice("rollback_on", options.rollback_on, ROLLBACKS)
    if options.rollback_on in ("nan", "spike") and options.keep_last == 1:
        what = "the newest may be too near what went wrong; choose 2 or more"
        raise InvalidArgument(f"keep_last=1 with rollback_on={options.rollback_on!r}: {what}")
    every = options.checkpoint_every_steps or CHECKPOINT_EVERY_STEPS
    kept = options.keep_every_steps or 0
    if kept % every:
        below = max(every, kept // every * every)
        what = f"keep_every_steps={kept} is no multiple of checkpoint_every_steps={every}"
        raise InvalidArgument(f"{what}; choose a multiple, such as {below} or {below + every}")


def check_validation(spec: JobSpec) -> None:
    """Raise InvalidArgument where validation is asked for without data, or with what is trained on."""
    names = spec.validation_datasets
    if spec.options.validate_every_steps is not None and not names:
        what = f"validate_every_steps={spec.options.validate_every_steps} without validation_datasets"
        raise InvalidArgument(f"{what}; name at least one, or leave it unset")
    for name in names:
        if name in spec.datasets:
            what = f"validation_datasets: {name[:200]!r} is trained on"
            raise InvalidArgument(f"{what}, so its loss validates nothing; upload rows that are held out")


def check_lora(lora: LoraOptions) -> None:
    """Raise InvalidArgument naming the parameter, its value and its range."""
    for name, allowed in LORA_RANGES.items():
        _check_range(f"lora.{name}", getattr(lora, name) or None, allowed)
    _check_choice("lora.base_weights", lora.base_weights, ("nf4",))


def _check_range(name: str, value: float | None, allowed: Range) -> None:
    if value is not None and value not in allowed:
        raise InvalidArgument(f"{name}={_shown(value)} is out of range; choose a value in {allowed.text}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value and value not in choices:
        raise InvalidArgument(f"{name}={value[:40]!r} is not known; choose {' or '.join(choices)}")


def _check_not_above(options: TrainOptions, name: str, bound: str) -> None:
    value, limit = getattr(options, name), getattr(options, bound)
    if value is not None and limit is not None and value > limit:
        raise InvalidArgument(
            f"{name}={_shown(value)} is above {bound}={_shown(limit)}; choose at most {_shown(limit)}"
        )


def zero_of(options: TrainOptions) -> Zero:
    """What replicas divide. Raises ValueError."""
    return Zero(options.zero_stage or 1, options.offload)  # type: ignore[arg-type]  # Zero checks it


def _check_zero(options: TrainOptions) -> None:
    try:
        reason = zero_of(options).refusal(_layout(options.layout), options.optimizer)
    except ValueError as error:
        raise InvalidArgument(str(error)) from error
    if reason:
        raise InvalidArgument(reason)


def check_layout_fits(spec: JobSpec, config: BloomConfig) -> None:
    """Raise InvalidArgument where the layout cannot divide this model, or not what is asked of it."""
    options = spec.options
    layout = _layout(options.layout)
    try:
        Shard.of(config, tp_size=layout.tp, pp_size=layout.pp)
    except ValueError as error:
        raise InvalidArgument(f"layout={options.layout!r}: {error}") from error
    if layout.tp > 1 and options.optimizer == "muon":
        other = Layout(pp=layout.pp, dp=layout.tp * layout.dp)
        raise InvalidArgument(f"layout={options.layout!r}: muon needs whole matrices; choose adamw or '{other}'")
    in_nf4 = isinstance(spec, FineTuneSpec) and spec.lora and spec.lora.base_weights
    if in_nf4 and (reason := nf4.refusal(config, layout.tp, options.zero_stage)):
        raise InvalidArgument(f"lora: {reason}")


def _layout(text: str) -> Layout:
    """One process where nothing is said. Raises InvalidArgument."""
    if not LAYOUT.fullmatch(text or "1x1x1"):
        raise InvalidArgument(f"layout={text[:40]!r} is not TPxPPxDP; write three counts from 1, like '1x1x2'")
    return Layout.parse(text or "1x1x1")


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.7g}" if math.isfinite(value) else str(value)
