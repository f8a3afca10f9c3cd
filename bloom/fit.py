"""Which layouts of a run work on a cluster, best first, and why the others do not. Torch-free."""

from bisect import bisect_right
from dataclasses import dataclass, replace

from .cluster import GIB, Cluster
from .config import BloomConfig
from .layout import Layout
from .memory import Memory, Run, peak_memory
from .step_time import step_time


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A layout tried: with `reason` "" it fits."""

    layout: str  # TPxPPxDP
    num_gpus: int
    step_seconds: float
    memory_bytes: int  # of the fullest rank
    reason: str


def refusal(config: BloomConfig, run: Run, cluster: Cluster) -> str:
    """Why `run` cannot be laid out, with the remedy; "" when it can."""
    cluster = cluster.shared_by(run.layout.num_ranks)
    layout, per_pass = run.layout, run.micro_batch * run.layout.dp
    if config.n_head % layout.tp:
        *others, last = (str(n) for n in range(1, config.n_head + 1) if config.n_head % n == 0)
        choices = f"{', '.join(others)} or {last}" if others else last
        return f"tp={layout.tp} does not divide {config.n_head} heads; choose {choices}"
    if layout.pp > config.n_layer:
        return f"pp={layout.pp} stages cannot share {config.n_layer} layers; choose 1 to {config.n_layer}"
    if reason := run.zero.refusal(layout):
        return reason
    if layout.num_ranks > cluster.num_gpus:
        return f"layout {layout} takes {layout.num_ranks} GPUs of {cluster.num_gpus}; lower tp, pp or dp"
    if layout.tp > cluster.gpus_per_node:
        return f"tp={layout.tp} reaches out of a node of {cluster.gpus_per_node}; choose at most that"
    if run.global_batch % per_pass:
        lower = run.global_batch // per_pass * per_pass
        choices = f"{lower} or {lower + per_pass}" if lower else str(per_pass)
        asked = f"micro_batch={run.micro_batch} x dp={layout.dp}"
        return f"global_batch={run.global_batch} is no multiple of {asked}; use {choices}"
    return ""


def shortage(config: BloomConfig, run: Run, cluster: Cluster) -> str:
    """Why `run`, which `refusal` lets pass, does not fit into memory, with the remedy; "" when it does."""
    cluster = cluster.shared_by(run.layout.num_ranks)
    stage, memory = peak_memory(config, run, cluster)
    if memory.total <= cluster.usable_bytes:
        return ""
    needs = (
        f"stage {stage.index} needs {memory.total / GIB:.1f} GiB a rank of the {cluster.usable_bytes / GIB:.1f} usable"
    )
    return f"{needs}, most of it {_largest(memory)}; {_remedy(run, memory)}"


def _largest(memory: Memory) -> str:
    kinds = memory.kinds()
    return max(kinds, key=lambda kind: kinds[kind])


def _remedy(run: Run, memory: Memory) -> str:
    match _largest(memory):
        case "activations" if not run.checkpointing:
            return "checkpoint activations"
        case "activations" if run.micro_batch > 1:
            return "lower micro_batch"
        case "optimizer" | "update":
            return "raise dp, tp or pp, on more GPUs"
        case "weights" | "gradients" if run.layout.pp == 1 and run.layout.dp > 1 and run.zero.stage < 3:
            return f"raise tp or pp, on more GPUs, or set zero_stage={run.zero.stage + 1}"
    return "raise tp or pp, on more GPUs"


def candidates(config: BloomConfig, run: Run, cluster: Cluster) -> list[Candidate]:
    """Every TP and PP with the most DP that the cluster and the batch allow: what fits first, the fastest ahead.

    Of `run`, all but the layout counts.
    """
    shares = _even_shares(run, cluster.num_gpus)
    layouts = [
        Layout(tp=tp, pp=pp, dp=_most(shares, cluster.num_gpus // (tp * pp)))
        for tp in range(1, min(cluster.gpus_per_node, config.n_head) + 1)
        for pp in range(1, config.n_layer + 1)
        if config.n_head % tp == 0 and tp * pp <= cluster.num_gpus
    ]
    found = [_try(config, replace(run, layout=layout), cluster) for layout in layouts]
    return sorted(found, key=lambda one: (one.reason != "", one.step_seconds if not one.reason else one.memory_bytes))


def _even_shares(run: Run, limit: int) -> list[int]:
    """Every dp up to `limit` that shares the batch evenly, ascending; 1 alone where none does."""
    return [dp for dp in range(1, limit + 1) if run.global_batch % (run.micro_batch * dp) == 0] or [1]


def _most(shares: list[int], limit: int) -> int:
    return shares[bisect_right(shares, limit) - 1]


def _try(config: BloomConfig, run: Run, cluster: Cluster) -> Candidate:
    return Candidate(
        layout=str(run.layout),
        num_gpus=run.layout.num_ranks,
        step_seconds=step_time(config, run, cluster).total,
        memory_bytes=peak_memory(config, run, cluster)[1].total,
        reason=refusal(config, run, cluster) or shortage(config, run, cluster),
    )
