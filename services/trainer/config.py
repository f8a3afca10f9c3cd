"""What a run is: its hyper-parameters, its data and its model, as the worker hands them to the processes it starts."""

from dataclasses import dataclass, field, replace
from math import gcd
from typing import Any, Literal

from bloom.batch_ramp import BatchRamp
from bloom.layout import Layout
from bloom.zero import BUCKET, LIVE, Offload, Zero
from services.trainer.failure import JobFailure
from services.trainer.retention import Retention
from services.trainer.schedule import Schedule
from services.trainer.spec import Spec

Precision = Literal["bf16", "fp16", "fp32"]
Optimizer = Literal["adamw", "muon"]
BaseWeights = Literal["", "nf4"]
RollbackOn = Literal["none", "nan", "spike"]
# Rows; rows; rows; the YAML of corpus/blend.py; that of services/common/mixture.py
DatasetFormat = Literal["text", "multitask", "fields", "blend", "mixture"]
# DeepSpeed's, as BLOOM's fp16 runs had it. Source: bigscience-workshop/bigscience, smaller_models.
LOSS_SCALE = {
    "loss_scale": 0,  # dynamic
    "initial_scale_power": 12,
    "loss_scale_window": 500,  # steps without an overflow after which the scale is doubled
    "hysteresis": 2,
    "min_loss_scale": 1,
}
ALL_ELEMENTS = 1 << 40  # more than any model has


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    base_weights: BaseWeights = ""  # what the frozen ones are kept in: bloom/nf4.py; "": as the run computes


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Hyper-parameters of a run; exactly one of `steps` and `epochs` is set."""

    steps: int | None = None
    epochs: float | None = None
    learning_rate: float = 1e-3  # AdamW's, at its peak
    min_learning_rate: float = 1e-4
    warmup_steps: int | None = None  # None: 5 % of the steps
    sequence_length: int = 512  # tokens
    micro_batch: int = 8  # sequences per rank and forward
    gradient_accumulation: int = 1
    precision: Precision = "bf16"
    optimizer: Optimizer = "adamw"
    muon_learning_rate: float = 0.02
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip_grad_norm: float = 1.0  # 0: off
    dropout: float = 0.0  # hidden and attention
    bpe_dropout: float = 0.0  # when encoding training text
    seed: int = 42
    checkpoint_every_steps: int = 100
    validate_every_steps: int = 100  # where there are validation datasets; the last step too
    recompute: bool = False  # activations of a layer, in the backward pass, instead of keeping them
    layout: Layout = field(default_factory=Layout)
    batch_ramp: str = ""  # "START,INCREMENT,SAMPLES" before the full batch; "": none
    warmup_samples: int | None = None  # None: by warmup_steps
    decay_samples: int | None = None  # when the learning rate is at its minimum; None: at the end
    rollback_on: RollbackOn = "none"  # steering.py
    spike_deviations: float = 7.0  # spikes.py
    keep_last: int = 2  # checkpoints
    keep_every_steps: int = 0  # checkpoints that stay for good; 0: none
    lora: LoraConfig | None = None  # None: all parameters are trained
    normalize_targets: bool = False  # each example counts as one, however long its targets are
    max_examples_per_dataset: int | None = None  # in a pass; None: all
    zero_stage: int = 1  # what replicas divide: bloom/zero.py
    offload: Offload = ""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps={self.steps} and epochs={self.epochs}: set one of the two")
        if self.optimizer == "muon" and self.layout.tp > 1:
            remedy = f"use adamw, or the layout 1x{self.layout.pp}x{self.layout.dp * self.layout.tp}"
            raise JobFailure("BAD_LAYOUT", f"layout {self.layout}: muon needs whole matrices; {remedy}", "layout")
        self._check_zero()
        self._check_ramp()

    def _check_zero(self) -> None:
        try:
            reason = self.zero.refusal(self.layout, self.optimizer)
        except ValueError as error:
            raise JobFailure("BAD_CONFIG", str(error), "zero_stage") from error
        if reason:
            raise JobFailure("BAD_LAYOUT", reason, "zero_stage")

    @property
    def zero(self) -> Zero:
        return Zero(self.zero_stage, self.offload)

    def _check_ramp(self) -> None:
        try:
            ramp = self.ramp
        except ValueError as error:
            raise JobFailure("BAD_CONFIG", str(error), "batch_ramp") from error
        together = self.micro_batch * self.layout.dp
        if ramp and (ramp.start % together or ramp.increment % together):
            what = f"batch_ramp={self.batch_ramp}: {together} sequences (micro_batch x DP) are computed at a time"
            raise JobFailure("BAD_CONFIG", f"{what}; START and INCREMENT must be multiples of that", "batch_ramp")

    @property
    def retention(self) -> Retention:
        return Retention(last=self.keep_last, every=self.keep_every_steps)

    @property
    def global_batch(self) -> int:
        """Sequences per optimizer step, after the ramp."""
        return self.micro_batch * self.gradient_accumulation * self.layout.dp

    @property
    def ramp(self) -> BatchRamp | None:
        return BatchRamp.parse(self.batch_ramp, self.global_batch) if self.batch_ramp else None

    def samples_before(self, step: int) -> int:
        """Sequences that the steps before `step` (0 for the first) have seen."""
        return self.ramp.consumed_after(step) if self.ramp else step * self.global_batch

    def num_micro_batches(self, step: int) -> int:
        """Of each replica in step `step`."""
        sequences = self.samples_before(step + 1) - self.samples_before(step)
        return sequences // (self.micro_batch * self.layout.dp)

    def steps_of(self, samples: int) -> int:
        """Steps, about, that see `samples` sequences; at least one."""
        return max(1, self.ramp.num_steps(samples) if self.ramp else round(samples / self.global_batch))

    def with_fewer_replicas(self, most: int) -> "TrainConfig":
        """The same batch on `most` replicas, or the next number below that divides it; as it is where none does."""
        micro_batches = self.layout.dp * self.gradient_accumulation
        sizes = [self.ramp.start, self.ramp.increment] if self.ramp else []
        together = gcd(micro_batches, *(sequences // self.micro_batch for sequences in sizes))
        fewer = next((dp for dp in range(min(most, self.layout.dp), 0, -1) if together % dp == 0), self.layout.dp)
        return replace(self, layout=replace(self.layout, dp=fewer), gradient_accumulation=micro_batches // fewer)

    def schedule(self, total_steps: int) -> Schedule:
        """Of the learning rate relative to its peak, by sequences seen."""
        warmup = self.warmup_samples
        if warmup is None:
            steps = self.warmup_steps if self.warmup_steps is not None else max(1, round(0.05 * total_steps))
            warmup = self.samples_before(steps)
        total = self.decay_samples or self.samples_before(total_steps)
        return Schedule(peak=1.0, minimum=self.min_learning_rate / self.learning_rate, warmup=warmup, total=total)

    @property
    def is_undivided(self) -> bool:
        """Nothing is to be divided and no second format kept: ZeRO would hold all twice or more, so there is none."""
        alone = self.layout.dp * self.layout.pp == 1 and not self.offload
        return alone and self.precision == "fp32" and self.optimizer == "adamw" and self.zero_stage == 1

    def deepspeed(self) -> dict[str, Any]:
        """DeepSpeed's configuration: fp32 master weights, and gradients but in fp16."""
        return {
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "gradient_accumulation_steps": self.gradient_accumulation,
            # Without ZeRO the engine does not tell the norm: train.py clips.
            "gradient_clipping": 0.0 if self.is_undivided else self.clip_grad_norm,
            "zero_optimization": {"stage": 0} if self.is_undivided else zero_section(self.zero),
            "zero_force_ds_cpu_optimizer": False,  # ours works anywhere; DeepSpeed's needs a compiler
            "zero_allow_untested_optimizer": True,  # ours works on flat partitions: optimizer.py
            # Stages send each other what a rank holds, with sequence parallelism its own tokens: DeepSpeed's way of
            # cutting that up among tensor-parallel ranks would cut it again.
            "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
            "bf16": {"enabled": self.precision == "bf16"},
            "fp16": {"enabled": self.precision == "fp16", **LOSS_SCALE},
            # In fp16 as BLOOM's runs: DeepSpeed would add up fp32 ones beside those that the pipeline's ends exchange.
            "data_types": {"grad_accum_dtype": "fp16" if self.precision == "fp16" else "fp32"},
            "steps_per_print": 1 << 40,
        }


def zero_section(zero: Zero) -> dict[str, Any]:
    """DeepSpeed's "zero_optimization"."""
    section: dict[str, Any] = {"stage": zero.stage, "reduce_bucket_size": BUCKET}
    if zero.stage == 3:
        section |= {
            "stage3_prefetch_bucket_size": BUCKET,
            "stage3_max_live_parameters": LIVE,
            "stage3_max_reuse_distance": LIVE,
            "sub_group_size": ALL_ELEMENTS,  # the optimizer counts a group's steps, so it must see it once a step
        }
    if zero.offload:
        section["offload_optimizer"] = {"device": "cpu"}
    if zero.offload == "parameters":
        section["offload_param"] = {"device": "cpu"}
    return section


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSpec:
    name: str
    format: DatasetFormat
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec(Spec):
    """All that the processes of one attempt need; kept as `run.json` in the job's folder."""

    attempt: int  # 1 for the first
    config: TrainConfig
    datasets: tuple[DatasetSpec, ...]
    tokenizer_digest: str
    model_config: str = ""  # pre-training: a preset's name or a config.json's text
    base: str = ""  # fine-tuning: the base version's name
    base_files: tuple[tuple[str, str], ...] = ()  # fine-tuning: (path, digest) of the base version
    validation: tuple[DatasetSpec, ...] = ()  # never trained on
    from_job: str = ""  # whose checkpoint the run begins with
    from_step: int = 0  # of that checkpoint; 0: the newest
