"""What a run is: its hyper-parameters, its data and its model, as the worker hands them to the processes it starts."""

import json
from dataclasses import asdict, dataclass, field, replace
from math import gcd
from pathlib import Path
from typing import Any, Literal

from bloom.batch_ramp import BatchRamp
from bloom.layout import Layout
from services.trainer.failure import JobFailure
from services.trainer.schedule import Schedule

Precision = Literal["bf16", "fp32"]
Optimizer = Literal["adamw", "muon"]
BUCKET = 1 << 25  # values that ZeRO copies together before it sums them over replicas: 128 MB in fp32
DatasetFormat = Literal["text", "multitask", "blend"]  # rows; rows; the YAML of corpus/blend.py


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0


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
    recompute: bool = False  # activations of a layer, in the backward pass, instead of keeping them
    layout: Layout = field(default_factory=Layout)
    batch_ramp: str = ""  # "START,INCREMENT,SAMPLES" before the full batch; "": none
    warmup_samples: int | None = None  # None: by warmup_steps
    decay_samples: int | None = None  # when the learning rate is at its minimum; None: at the end
    lora: LoraConfig | None = None  # None: all parameters are trained

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps={self.steps} and epochs={self.epochs}: set one of the two")
        if self.optimizer == "muon" and self.layout.tp > 1:
            remedy = f"use adamw, or the layout 1x{self.layout.pp}x{self.layout.dp * self.layout.tp}"
            raise JobFailure("BAD_LAYOUT", f"layout {self.layout}: muon needs whole matrices; {remedy}", "layout")
        if self.lora and self.layout.tp * self.layout.pp > 1:
            remedy = f"use 1x1x{self.layout.num_ranks}"
            raise JobFailure("BAD_LAYOUT", f"layout {self.layout}: adapters need whole models; {remedy}", "layout")

        self._check_ramp()

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
    def zero_stage(self) -> int:
        """0 where there is nothing to divide and no second format to keep: ZeRO would hold all twice or more."""
        alone = self.layout.dp * self.layout.pp == 1
        return 0 if alone and self.precision == "fp32" and self.optimizer == "adamw" else 1

    def deepspeed(self) -> dict[str, Any]:
        """DeepSpeed's configuration: fp32 gradients and master weights."""
        return {
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "gradient_accumulation_steps": self.gradient_accumulation,
            # Without ZeRO the engine does not tell the norm: train.py clips.
            "gradient_clipping": self.clip_grad_norm if self.zero_stage else 0.0,
            "zero_optimization": {"stage": self.zero_stage, "reduce_bucket_size": BUCKET},
            "zero_allow_untested_optimizer": True,  # ours works on flat partitions: optimizer.py
            # Stages send each other what a rank holds, with sequence parallelism its own tokens: DeepSpeed's way of
            # cutting that up among tensor-parallel ranks would cut it again.
            "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
            "bf16": {"enabled": self.precision == "bf16"},
            "data_types": {"grad_accum_dtype": "fp32"},
            "steps_per_print": 1 << 40,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSpec:
    name: str
    format: DatasetFormat
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """All that the processes of one attempt need; kept as `run.json` in the job's folder."""

    job_id: str
    attempt: int  # 1 for the first
    fencing_token: int
    config: TrainConfig
    datasets: tuple[DatasetSpec, ...]
    tokenizer_digest: str
    model_config: str = ""  # pre-training: a preset's name or a config.json's text
    base_files: tuple[tuple[str, str], ...] = ()  # fine-tuning: (path, digest) of the base version
    data_dir: str
    artifacts_url: str

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> "RunSpec":
        fields = json.loads(path.read_text())
        config = fields["config"]
        config["layout"] = Layout(**config["layout"])
        config["lora"] = config["lora"] and LoraConfig(**config["lora"])
        fields["config"] = TrainConfig(**config)
        fields["datasets"] = tuple(DatasetSpec(**dataset) for dataset in fields["datasets"])
        fields["base_files"] = tuple((name, digest) for name, digest in fields["base_files"])
        return cls(**fields)
