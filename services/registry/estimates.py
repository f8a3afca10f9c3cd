"""What a job will cost, computed when it is created, by the planner that `anthesis plan` uses (docs/planning.md)."""

from dataclasses import asdict, dataclass
from typing import Any, cast

from bloom.batch_ramp import BatchRamp
from bloom.cluster import CLUSTERS, Cluster, named_cluster
from bloom.config import BloomConfig
from bloom.fit import candidates, refusal
from bloom.layout import Layout
from bloom.memory import Precision, Run
from bloom.plan import Plan, plan
from services.common.errors import InvalidArgument
from services.registry.job_specs import FineTuneSpec, JobSpec, TrainOptions, zero_of

Estimate = dict[str, Any]  # the fields of JobEstimate

# What the trainer fills in (TrainConfig); a test keeps the two alike.
SEQUENCE_LENGTH, MICRO_BATCH, GRADIENT_ACCUMULATION, LORA_RANK = 512, 8, 1, 8
BYTES_PER_TOKEN = 4  # assumed, where a job counts epochs: the tokenizer decides
MAX_LAYOUTS = 5  # of those that fit, and as many of those that do not
MAX_INT64 = 2**63 - 1
MAX_STEPS = 2**32 - 1


@dataclass(frozen=True, slots=True)
class TrainingCluster:
    """What jobs are expected to run on: `named_cluster`'s arguments."""

    name: str = "this-machine"
    num_gpus: int | None = None  # None: the preset's

    @classmethod
    def parse(cls, text: str) -> "TrainingCluster":
        """Read "NAME" or "NAME:GPUS". Raises ValueError."""
        name, _, count = text.partition(":")
        if name not in CLUSTERS or (count and not (count.isdecimal() and int(count))):
            example = "jean-zay:64"
            raise ValueError(
                f"cluster {text!r} is not NAME or NAME:GPUS with a NAME of {', '.join(CLUSTERS)}; {example}"
            )
        return cls(name, int(count) if count else None)


THIS_MACHINE = TrainingCluster()


def estimate(spec: JobSpec, config: BloomConfig, dataset_bytes: int, where: TrainingCluster) -> Estimate:
    """Figures of the job; `shortage` alone where it cannot be laid out there.

    Raises InvalidArgument for a batch ramp that is none, or that the layout cannot follow.
    """
    run, cluster = _run(spec), named_cluster(where.name, where.num_gpus)
    ramp = _ramp(spec.options, run)
    if reason := refusal(config, run, cluster):
        return {"cluster": where.name, "layout": str(run.layout), "shortage": reason}
    num_steps, from_bytes = _num_steps(spec.options, run, dataset_bytes)
    samples = ramp.consumed_after(num_steps) if ramp else num_steps * run.global_batch
    figures = plan(config, run, cluster, tokens=samples * run.seq_length, ramp=ramp)
    return {
        "cluster": where.name,
        "layout": str(run.layout),
        "num_gpus": run.layout.num_ranks,
        "steps_from_bytes": from_bytes,
        "layouts": _layouts(config, run, cluster),
    } | _figures(figures)


def _figures(figures: Plan) -> Estimate:
    kinds = figures.memory.kinds() | {"total": figures.memory_bytes}
    names = (
        "shortage",
        "num_steps",
        "step_seconds",
        "seconds",
        "gpu_hours",
        "energy_kwh",
        "co2_kg",
        "checkpoint_bytes",
    )
    return {
        "memory": {f"{kind}_bytes": min(size, MAX_INT64) for kind, size in kinds.items()},
    } | {name: getattr(figures, name) for name in names}


def _run(spec: JobSpec) -> Run:
    options = spec.options
    layout = Layout.parse(options.layout or "1x1x1")
    micro_batch = options.micro_batch or MICRO_BATCH
    lora = spec.lora if isinstance(spec, FineTuneSpec) else None
    return Run(
        layout=layout,
        global_batch=micro_batch * (options.gradient_accumulation or GRADIENT_ACCUMULATION) * layout.dp,
        micro_batch=micro_batch,
        seq_length=options.sequence_length or SEQUENCE_LENGTH,
        precision=cast(Precision, options.precision or "bf16"),
        checkpointing=options.recompute,
        sequence_parallel=True,
        dropout=bool(options.dropout),
        lora_rank=(lora.rank or LORA_RANK) if lora else 0,
        base_in_nf4=bool(lora and lora.base_weights),
        zero=zero_of(options),
    )


def _ramp(options: TrainOptions, run: Run) -> BatchRamp | None:
    if not options.batch_ramp:
        return None
    try:
        ramp = BatchRamp.parse(options.batch_ramp, run.global_batch)
    except ValueError as error:
        raise InvalidArgument(f"batch_ramp={options.batch_ramp[:60]!r}: {error}") from error
    together = run.micro_batch * run.layout.dp
    if ramp.start % together or ramp.increment % together:
        what = f"batch_ramp={options.batch_ramp!r}: {together} sequences (micro_batch x DP) are computed at a time"
        raise InvalidArgument(f"{what}; START and INCREMENT must be multiples of that")
    return ramp


def _num_steps(options: TrainOptions, run: Run, dataset_bytes: int) -> tuple[int, bool]:
    """Optimizer steps, and whether they follow from the data's bytes alone."""
    if options.steps is not None:
        return options.steps, False
    tokens = (options.epochs or 0.0) * dataset_bytes / BYTES_PER_TOKEN
    return min(MAX_STEPS, max(1, round(tokens / (run.global_batch * run.seq_length)))), True


def _layouts(config: BloomConfig, run: Run, cluster: Cluster) -> list[Estimate]:
    tried = candidates(config, run, cluster)
    fitting = [one for one in tried if not one.reason]
    others = tried[len(fitting) :]
    shown = map(asdict, (*fitting[:MAX_LAYOUTS], *others[:MAX_LAYOUTS]))
    return [one | {"memory_bytes": min(one["memory_bytes"], MAX_INT64)} for one in shown]
