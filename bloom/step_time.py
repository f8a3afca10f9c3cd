"""How long a training step takes, term by term, from what a machine can do. Torch-free.

Every term is work over a speed that `Cluster` states; none is solved for from a run. Terms do not overlap, and the
slowest pipeline stage sets the pace. Sources: Narayanan et al. 2021 for the
pipeline and its bubble; DeepSpeed 0.19.8's pipe/schedule.py, pipe/p2p.py and bf16_optimizer.py for what is sent when.

Legend: m = micro-batches of a pipeline, p = stages, t = tensor-parallel ranks, d = data-parallel ranks.
"""

from dataclasses import dataclass, fields

from .cluster import Cluster
from .config import BloomConfig
from .flops import head_flops, layer_flops
from .layout import Stage, stages, vocabulary_rows
from .memory import LOGIT_BYTES, Run, kept_bytes

# An activation is written and read in a forward pass; going back it is read, and its gradient written and read.
FORWARD_TOUCHES, BACKWARD_TOUCHES = 2, 3
# Per parameter: gradient, master weight and both moments are read, the last three and the weight written.
UPDATE_BYTES = 4 * 4 + 3 * 4 + 2
# Per parameter of the whole rank: gradients are read for their norm, then zeroed.
NORM_BYTES = 4 + 4
TRANSFERS = 4  # an activation and a gradient in, an activation and a gradient out: one after another, as p2p.py blocks
ACCUMULATE_BYTES = {"bf16": 2 + 4 + 4, "fp16": 2 + 2 + 2, "fp32": 4 + 4 + 4}  # per parameter and micro-batch
REDUCED_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}  # per gradient over DP: DeepSpeed's communication_data_type
SUMMED_BYTES = {"bf16": 4, "fp16": 2, "fp32": 4}  # per gradient of the tied embedding, over its two stages


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatchTime:
    """Seconds that one stage spends on one micro-batch, forward and backward."""

    matmul: float
    elementwise: float  # activations through memory: norms, GELU, softmax, residuals
    tensor_parallel: float
    pipeline: float  # hand-over to and from the neighbours
    accumulate: float  # adding its gradients to the step's

    @property
    def total(self) -> float:
        return self.matmul + self.elementwise + self.tensor_parallel + self.pipeline + self.accumulate


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Seconds of one step; the terms add up to `total`."""

    matmul: float
    elementwise: float
    tensor_parallel: float
    pipeline: float
    accumulate: float
    bubble: float  # (p - 1) micro-batches during which a stage waits
    tied_embedding: float  # the gradients of the first and the last stage's copies are added up
    gradient_reduce: float  # over DP
    optimizer: float
    weight_gather: float  # every rank gets the weights that the others updated; in ZeRO-3 for each pass

    @property
    def total(self) -> float:
        return float(sum(getattr(self, field.name) for field in fields(self)))


def step_time(config: BloomConfig, run: Run, cluster: Cluster) -> StepTime:
    """One step of `run` with m micro-batches: (m + p - 1) of the slowest stage's, then what is done once."""
    cluster = cluster.shared_by(run.layout.num_ranks)
    m, parts = run.num_micro_batches, stages(config, run.layout.pp)
    slowest = max((micro_batch_time(config, run, cluster, stage) for stage in parts), key=lambda time: time.total)
    parameters = max(stage.parameters(config, run.layout.tp) for stage in parts)
    own = parameters / run.layout.dp  # ZeRO: the part that a rank updates
    reduced = REDUCED_BYTES[run.precision] * parameters
    return StepTime(
        matmul=m * slowest.matmul,
        elementwise=m * slowest.elementwise,
        tensor_parallel=m * slowest.tensor_parallel,
        pipeline=m * slowest.pipeline,
        accumulate=m * slowest.accumulate,
        bubble=(run.layout.pp - 1) * slowest.total,
        tied_embedding=_tied_embedding(config, run, cluster),
        gradient_reduce=_gradient_rounds(run) * _around_data_ring(run, cluster, reduced),
        optimizer=(UPDATE_BYTES * own + NORM_BYTES * parameters) / cluster.memory_bandwidth,
        weight_gather=_weight_rounds(run) * _around_data_ring(run, cluster, run.element_bytes * parameters),
    )


def _gradient_rounds(run: Run) -> int:
    """Around the data ring in a step: an all-reduce, or in ZeRO-2 and 3 a reduce-scatter for each micro-batch."""
    return 2 if run.zero.stage == 1 else run.num_micro_batches


def _weight_rounds(run: Run) -> int:
    """One, or in ZeRO-3 one for each pass forward and backward of each micro-batch."""
    passes = 3 if run.checkpointing else 2
    return run.num_micro_batches * passes if run.zero.stage == 3 else 1


def micro_batch_time(config: BloomConfig, run: Run, cluster: Cluster, stage: Stage) -> MicroBatchTime:
    tokens = run.micro_batch * run.seq_length
    forwards = 2 if run.checkpointing else 1
    flops = (forwards + 2) * stage.num_layers * layer_flops(config, run.seq_length)
    moved = (FORWARD_TOUCHES * forwards + BACKWARD_TOUCHES) * stage.num_layers * kept_bytes(config, run)
    if stage.has_head:
        flops += 3 * head_flops(config)
        moved += 2 * LOGIT_BYTES * tokens * vocabulary_rows(config, run.layout.tp)  # written and read
    parameters = stage.parameters(config, run.layout.tp)
    return MicroBatchTime(
        matmul=tokens * flops / run.layout.tp / (cluster.flops(run.precision) * cluster.matmul_efficiency),
        elementwise=moved / cluster.memory_bandwidth,
        tensor_parallel=2 * (forwards + 1) * stage.num_layers * _all_reduce_hidden(config, run, cluster),
        pipeline=_hand_over(config, run, cluster),
        accumulate=ACCUMULATE_BYTES[run.precision] * parameters / cluster.memory_bandwidth,
    )


def _all_reduce_hidden(config: BloomConfig, run: Run, cluster: Cluster) -> float:
    """Sum a micro-batch's hidden states over the tensor ranks: two per layer and pass, in a ring inside a node.

    With sequence parallelism a reduce-scatter and an all-gather send the same bytes.
    """
    t = run.layout.tp
    return 2 * (t - 1) / t * run.layer_input_bytes(config) / cluster.link_bandwidth


def _hand_over(config: BloomConfig, run: Run, cluster: Cluster) -> float:
    """All transfers of a micro-batch between stages: each tensor rank sends its part, all of a node at once."""
    if run.layout.pp == 1:
        return 0.0
    sent = TRANSFERS * run.layer_input_bytes(config)
    if run.layout.num_ranks <= cluster.gpus_per_node:
        return sent / run.layout.tp / cluster.link_bandwidth
    ranks = min(cluster.gpus_per_node, run.layout.tp * run.layout.dp)  # of one stage, on one node
    return sent / run.layout.tp * ranks / cluster.network_bandwidth


def _around_data_ring(run: Run, cluster: Cluster, size: float) -> float:
    """Once around a ring of the d data ranks, each sending (d - 1)/d of `size` bytes: an all-gather; twice: a sum.

    Ranks of a ring that share a node sit next to each other, so each of the node's rings leaves it once.
    """
    d = run.layout.dp
    sent = (d - 1) / d * size
    neighbours = min(d, max(1, cluster.gpus_per_node // run.layout.tp))  # of one ring, on one node
    if neighbours == d:
        return sent / cluster.link_bandwidth
    return sent * (cluster.gpus_per_node // neighbours) / cluster.network_bandwidth


def _tied_embedding(config: BloomConfig, run: Run, cluster: Cluster) -> float:
    """The sum of two gradients of a rank's rows: each sends its own; all ranks of a node do at once."""
    if run.layout.pp == 1:
        return 0.0
    size = SUMMED_BYTES[run.precision] * vocabulary_rows(config, run.layout.tp) * config.hidden_size
    if run.layout.num_ranks <= cluster.gpus_per_node:
        return size / cluster.link_bandwidth
    ranks = min(cluster.gpus_per_node, run.layout.tp * run.layout.dp)
    return size * ranks / cluster.network_bandwidth
