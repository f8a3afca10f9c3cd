"""What a training run costs before it starts: memory, time, energy, disk. Torch-free and dependency-free.

Sources: the training logs of BLOOM-176B (chronicles of bigscience-workshop/bigscience) and Megatron-DeepSpeed's FLOP
formula, whose figures the tests reproduce; the carbon rule is the model card's.
docs/planning.md has the model of cost and the published figures beside ours.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .batch_ramp import BatchRamp, Plateau
from .cluster import Cluster
from .config import BloomConfig
from .fit import refusal, shortage
from .flops import flops_per_token, kv_values_per_token
from .memory import Memory, Run, peak_memory
from .step_time import StepTime, step_time

DTYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
# Per parameter: half-precision weight 2, fp32 master weight 4, Adam's two moments 4 + 4.
CHECKPOINT_BYTES = 14
WEEK_S = 7 * 24 * 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Pauses:
    """What a run does beside its steps."""

    checkpoint_every_s: float = 3 * 3600.0  # BLOOM-176B: about every 3 hours
    evaluate_every_steps: int = 1000
    evaluation_s: float = 0.0  # BLOOM-176B: 29 datasets, about 12 minutes
    incident_s: float = 0.0  # lost in all to what is no GPU's failure

    def __post_init__(self) -> None:
        for key in ("checkpoint_every_s", "evaluate_every_steps"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key}={getattr(self, key)} never passes; use a figure above 0")
        for key in ("evaluation_s", "incident_s"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"{key}={getattr(self, key)} is below zero; use 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Every figure of one run; `dataclasses.asdict` gives its JSON."""

    parameters: int
    embedding_parameters: int  # word embeddings, shared with the head
    weight_bytes: dict[str, int]  # by dtype
    checkpoint_bytes: int  # on disk: weights and optimizer, mixed precision
    kv_bytes_per_token: dict[str, int]  # keys and values of all layers, by dtype
    run: Run
    cluster: Cluster
    fullest_stage: int  # whose ranks need `memory`
    memory: Memory  # of one rank, by kind
    memory_bytes: int  # of one rank, in all
    shortage: str  # why that does not fit, with the remedy; "": it fits
    step: StepTime  # at the full batch, by term
    step_seconds: float
    tokens_per_second: float
    tokens: int
    num_steps: int
    flops_per_token: float  # the model's: forward and backward, exact
    flops_per_token_6n: int  # the usual estimate, 6N
    hardware_flops_per_token: float  # with what checkpointing computes again
    total_flops: float  # the model's
    mfu: float  # model FLOP/s at the full batch, as a share of the peak
    hfu: float  # hardware FLOP/s, the same way
    compute_seconds: float  # all steps at the full batch, nothing in between
    compute_gpu_hours: float
    step_seconds_in_all: float  # with the batch ramp
    seconds: float  # with the ramp, checkpoints, evaluations, failures and incidents
    gpu_hours: float
    energy_kwh: float
    co2_kg: float


def plan(
    config: BloomConfig,
    run: Run,
    cluster: Cluster,
    *,
    tokens: int = 366_000_000_000,
    ramp: BatchRamp | None = None,
    pauses: Pauses | None = None,
) -> Plan:
    """Figures for training config on `tokens` tokens (BLOOM's own run by default). GPUs outside the layout are free.

    Raises ValueError where the run cannot be laid out; one that lacks memory alone is planned, and says so.
    """
    if tokens < 0:
        raise ValueError(f"tokens={tokens} is below zero; use 0 or more")
    if reason := refusal(config, run, cluster):
        raise ValueError(reason)
    cluster = cluster.shared_by(run.layout.num_ranks)
    n, num_gpus = config.parameters, run.layout.num_ranks
    stage, memory = peak_memory(config, run, cluster)
    step = step_time(config, run, cluster)
    step_tokens = run.global_batch * run.seq_length
    model_flops = flops_per_token(config, seq_length=run.seq_length)
    hardware_flops = flops_per_token(config, seq_length=run.seq_length, recompute=run.checkpointing)
    peak = step.total * num_gpus * cluster.flops(run.precision)
    plateaus = list(_plateaus(-(-tokens // run.seq_length), run, ramp))
    in_all = sum(part.steps * step_time(config, _at(run, part.batch), cluster).total for part in plateaus)
    num_steps = sum(part.steps for part in plateaus)
    compute_seconds = tokens / step_tokens * step.total
    checkpoint_bytes = CHECKPOINT_BYTES * n
    seconds = _elapsed(in_all, num_steps, checkpoint_bytes, num_gpus, cluster, pauses or Pauses())
    gpu_hours = seconds * num_gpus / 3600
    return Plan(
        parameters=n,
        embedding_parameters=config.vocab_size * config.hidden_size,
        weight_bytes={dtype: size * n for dtype, size in DTYPE_BYTES.items()},
        checkpoint_bytes=checkpoint_bytes,
        kv_bytes_per_token={dtype: size * kv_values_per_token(config) for dtype, size in DTYPE_BYTES.items()},
        run=run,
        cluster=cluster,
        fullest_stage=stage.index,
        memory=memory,
        memory_bytes=memory.total,
        shortage=shortage(config, run, cluster),
        step=step,
        step_seconds=step.total,
        tokens_per_second=step_tokens / step.total,
        tokens=tokens,
        num_steps=num_steps,
        flops_per_token=model_flops,
        flops_per_token_6n=6 * n,
        hardware_flops_per_token=hardware_flops,
        total_flops=model_flops * tokens,
        mfu=model_flops * step_tokens / peak,
        hfu=hardware_flops * step_tokens / peak,
        compute_seconds=compute_seconds,
        compute_gpu_hours=compute_seconds * num_gpus / 3600,
        step_seconds_in_all=in_all,
        seconds=seconds,
        gpu_hours=gpu_hours,
        energy_kwh=gpu_hours * cluster.gpu_kw,
        co2_kg=gpu_hours * cluster.gpu_kw * cluster.kg_co2_per_kwh,
    )


def _plateaus(samples: int, run: Run, ramp: BatchRamp | None) -> Iterator[Plateau]:
    """Batch sizes and their steps until `samples` sequences are seen."""
    for plateau in ramp.plateaus() if ramp else ():
        steps = min(plateau.steps, -(-samples // plateau.batch))
        yield Plateau(plateau.batch, steps)
        samples = max(0, samples - steps * plateau.batch)
    yield Plateau(run.global_batch, -(-samples // run.global_batch))


def _at(run: Run, batch: int) -> Run:
    return replace(run, global_batch=batch)


def _elapsed(
    stepping_s: float, num_steps: int, checkpoint_bytes: int, num_gpus: int, cluster: Cluster, pauses: Pauses
) -> float:
    """Seconds from start to end. Failures are as many as expected, and cost what they did on average."""
    saving_s = stepping_s / pauses.checkpoint_every_s * checkpoint_bytes / cluster.storage_bandwidth
    evaluating_s = num_steps // pauses.evaluate_every_steps * pauses.evaluation_s
    lost_share = cluster.failures_per_gpu_week * num_gpus * cluster.hours_lost_per_failure * 3600 / WEEK_S
    if lost_share >= 1:
        raise ValueError(f"{num_gpus} GPUs fail faster than work is done; plan with fewer, or with shorter outages")
    return (stepping_s + saving_s + evaluating_s) / (1 - lost_share) + pauses.incident_s
