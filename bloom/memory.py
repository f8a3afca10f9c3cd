"""Memory of one rank while it trains, by kind. Torch-free.

Legend: s = sequence length, b = sequences of a micro-batch, h = hidden size, a = heads, t = tensor-parallel ranks,
e = bytes of an activation. Sources: Rajbhandari et al. 2020, ZeRO, section 3.1, for the bytes per parameter;
Korthikanti et al. 2022, Reducing Activation Recomputation, section 4, for the bytes per activation. What DeepSpeed's
stages keep beside ZeRO's own figures is read from DeepSpeed 0.19.8's stage_1_and_2.py and stage3.py.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Literal

from .cluster import Cluster
from .config import BloomConfig
from .layout import Layout, Stage, stages, vocabulary_rows
from .nf4 import BYTES as NF4_BYTES
from .zero import BUCKET, LIVE, Zero

Precision = Literal["bf16", "fp16", "fp32"]
Attention = Literal["dense", "megatron", "fused"]


@dataclass(frozen=True, slots=True)
class BytesPerParameter:
    weights: int
    gradients: int
    optimizer: int  # the fp32 master weight and Adam's two moments


BYTES_PER_PARAMETER: dict[Precision, BytesPerParameter] = {
    # 2 of each micro-batch, and 4 in which they are added up: BLOOM-176B's BF16_Optimizer, and ours.
    "bf16": BytesPerParameter(weights=2, gradients=2 + 4, optimizer=12),
    "fp16": BytesPerParameter(weights=2, gradients=2, optimizer=12),
    "fp32": BytesPerParameter(weights=4, gradients=4, optimizer=12),  # ZeRO-1 keeps a master copy in fp32, too
}
SUMMED_BYTES = {"bf16": 4, "fp16": 2, "fp32": 4}  # of a gradient that is added up over micro-batches
LOSS_WORKSPACE_BYTES = 300_000_000  # at most, for logits that are computed in chunks
LOGIT_BYTES = 4 + 4 + 4  # fp32 logits, their exponentials and their gradients
# Per parameter that a rank updates (AdamW itself has no temporaries): but for bf16, whose gradients are summed in one
# piece already, two fp32 copies, as DeepSpeed's stage_1_and_2.py gathers them, then flattens.
UPDATE_BYTES: dict[Precision, int] = {"bf16": 0, "fp16": 2 * 4, "fp32": 2 * 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What is trained in one step, and how. Raises ValueError, naming value and remedy, for an impossible one."""

    layout: Layout
    global_batch: int  # sequences per step
    micro_batch: int = 1  # sequences per forward pass of a pipeline
    seq_length: int = 2048  # tokens
    precision: Precision = "bf16"
    checkpointing: bool = True  # keep the inputs of layers alone and compute the rest again
    sequence_parallel: bool = False  # between the cut layers, each tensor rank keeps its part of the tokens
    dropout: bool = False
    lora_rank: int = 0  # of adapters on all linear layers, trained alone; 0: all parameters are trained
    base_in_nf4: bool = False  # the frozen weights of these layers
    attention: Attention = "dense"  # what is kept: as by bloom.attention, by Megatron in 2022, or no scores at all
    zero: Zero = field(default_factory=Zero)

    def __post_init__(self) -> None:
        for key in ("global_batch", "micro_batch", "seq_length"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} trains nothing; use at least 1")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank={self.lora_rank} is below zero; use 0 to train all parameters")
        if self.base_in_nf4 and not self.lora_rank:
            raise ValueError("base_in_nf4 with lora_rank=0: what is trained is not kept in NF4; set a lora_rank")
        if self.precision not in BYTES_PER_PARAMETER:
            raise ValueError(f"precision={self.precision!r} is not known; choose {', '.join(BYTES_PER_PARAMETER)}")
        if self.attention not in ("dense", "megatron", "fused"):
            raise ValueError(f"attention={self.attention!r} is not known; choose dense, megatron or fused")

    @property
    def is_undivided(self) -> bool:
        """Trained without ZeRO: services.trainer.config.TrainConfig.is_undivided."""
        alone = self.layout.dp * self.layout.pp == 1 and self.zero.stage == 1 and not self.zero.offload
        return alone and self.precision == "fp32"

    @property
    def num_micro_batches(self) -> int:
        """Of each pipeline in a step; the last one may be short where the batch does not divide."""
        return -(-self.global_batch // (self.micro_batch * self.layout.dp))

    @property
    def element_bytes(self) -> int:
        """Of one activation."""
        return 4 if self.precision == "fp32" else 2

    def layer_input_bytes(self, config: BloomConfig) -> int:
        """s b h e: the hidden states of a micro-batch."""
        return self.seq_length * self.micro_batch * config.hidden_size * self.element_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of one rank at its peak: as its loss goes back, with `update` 0, or in a larger update, with neither
    activations nor loss."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    update: int  # temporaries of the optimizer
    runtime: int  # libraries and device contexts
    host: int = 0  # what is offloaded: in the host's memory, and no part of `total`

    @property
    def total(self) -> int:
        return sum(self.kinds().values())

    def kinds(self) -> dict[str, int]:
        """Of `total`."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "host"}


def kept_bytes(config: BloomConfig, run: Run) -> float:
    """What one layer keeps of a micro-batch for its backward pass, on one tensor rank.

    Whole on each rank, or a 1/t of it with sequence parallelism: the inputs of both LayerNorms, of query_key_value and
    of dense_h_to_4h, 4 e s b h, and with dropout two masks of one byte. (Megatron gathers the latter two inputs anew
    in the backward pass; elsewhere they stay as they were gathered, whole.)
    Cut: query, key, value, the inputs of dense, of GELU and of dense_4h_to_h, 12 e s b h.
    Scores, a s² b of each rank's heads:
    megatron, the probabilities and with dropout its mask and result, which gives Korthikanti's s b h (34 + 5 a s / h);
    dense, the fp32 probabilities (and their 16-bit copy), with dropout factors and result; none in fp32 without;
    fused, none, as it computes them again.
    """
    tokens = run.seq_length * run.micro_batch
    t, h, e = run.layout.tp, config.hidden_size, run.element_bytes
    inputs = 4 * e + 2 * run.dropout
    gathered = 0 if run.attention == "megatron" or not run.sequence_parallel else 2 * e
    whole = tokens * h * ((inputs - gathered) / (t if run.sequence_parallel else 1) + gathered)
    cut = tokens * h * 12 * e / t
    scores = config.n_head / t * tokens * run.seq_length
    return whole + cut + scores * _score_bytes(run)


def _score_bytes(run: Run) -> int:
    e = run.element_bytes
    match run.attention:
        case "fused":
            return 0
        case "megatron":
            return e + (1 + e) * run.dropout
        case "dense" if run.precision == "fp32" and not run.dropout:
            return 0
        case "dense":
            return 4 + (e if e < 4 else 0) + 2 * e * run.dropout


def activation_bytes(config: BloomConfig, run: Run, stage: Stage) -> int:
    """What a stage's activations take at their peak, under 1F1B with the last stage's loss about to go back.

    Stage i of p has begun min(p - i, number of micro-batches) of them. Of each it keeps its layers, or with
    checkpointing their inputs, its ends' and the output it sent. Beside them one layer is worked on: as many bytes of
    gradients as it keeps, and with checkpointing what it keeps.
    """
    hidden = run.layer_input_bytes(config) / (run.layout.tp if run.sequence_parallel else 1)
    layer = kept_bytes(config, run)
    in_flight = min(run.layout.pp - stage.index, run.num_micro_batches)
    ends = stage.has_embedding + 2 * stage.has_head + (not stage.has_head)
    of_one = stage.num_layers * (hidden if run.checkpointing else layer) + ends * hidden
    working = layer * (2 if run.checkpointing else 1) + _unpacked_bytes(config, run) if stage.num_layers else 0
    return round(in_flight * of_one + working + _bias_bytes(config, run))


def _unpacked_bytes(config: BloomConfig, run: Run) -> int:
    """The largest weight of a layer, which a product makes of its NF4."""
    return 4 * config.hidden_size**2 // run.layout.tp * run.element_bytes if run.base_in_nf4 else 0


def _bias_bytes(config: BloomConfig, run: Run) -> float:
    """ALiBi with the causal mask, in fp32, which dense attention holds once for all layers."""
    return 4 * config.n_head / run.layout.tp * run.seq_length**2 if run.attention == "dense" else 0.0


def loss_bytes(config: BloomConfig, run: Run, stage: Stage) -> int:
    """The chunk of logits that is worked on, and the head's gradient of a micro-batch beside the summed one."""
    if not stage.has_head:
        return 0
    rows = vocabulary_rows(config, run.layout.tp)
    chunk = min(LOSS_WORKSPACE_BYTES, run.seq_length * run.micro_batch * rows * LOGIT_BYTES)
    return chunk + rows * config.hidden_size * run.element_bytes


def divided(size: BytesPerParameter, parameters: int, dp: int, stage: int) -> BytesPerParameter:
    """Bytes that a replica keeps of `parameters`, rounded up: ZeRO's table 1."""
    share = -(-parameters // dp)
    return BytesPerParameter(
        weights=size.weights * (share if stage == 3 else parameters),
        gradients=size.gradients * (share if stage >= 2 else parameters),
        optimizer=-(-size.optimizer * parameters // dp),
    )


def _bytes_per_parameter(run: Run) -> BytesPerParameter:
    size = BYTES_PER_PARAMETER[run.precision]
    if run.is_undivided:
        return replace(size, optimizer=8)  # no master copy
    if run.zero.stage == 1:
        return size
    # A micro-batch's own gradients are reduced and dropped; in stage 3 fp32 weights are their own master copy.
    is_master = run.zero.stage == 3 and run.precision == "fp32" and not run.zero.offload
    return replace(size, gradients=SUMMED_BYTES[run.precision], optimizer=8 if is_master else 12)


def _update_bytes(run: Run) -> int:
    """Per parameter that a rank updates; stages 2 and 3 flatten its gradients, which they have in parts already."""
    if run.is_undivided:
        return 0
    return UPDATE_BYTES[run.precision] if run.zero.stage == 1 else 4


def _gathered(config: BloomConfig, run: Run, parameters: int) -> int:
    """Elements of weights, in stage 3, that lie whole beside a replica's part."""
    embedding = vocabulary_rows(config, run.layout.tp) * config.hidden_size
    return min(parameters, embedding + LIVE + BUCKET) if run.zero.stage == 3 and run.layout.dp > 1 else 0


def stage_memory(config: BloomConfig, run: Run, stage: Stage, cluster: Cluster) -> Memory:
    """Of each rank of one stage: they are alike. Without GPUs there is one memory, and nothing to offload to."""
    parameters = stage.parameters(config, run.layout.tp)
    adapters = stage.adapter_parameters(config, run.layout.tp, run.lora_rank)
    trained = adapters or parameters
    size, dp, zero = _bytes_per_parameter(run), run.layout.dp, run.zero
    own, frozen = divided(size, trained, dp, zero.stage), divided(size, parameters + adapters - trained, dp, zero.stage)
    if run.base_in_nf4:
        in_nf4 = stage.num_layers * 12 * config.hidden_size**2 // run.layout.tp
        frozen = replace(frozen, weights=frozen.weights - round(in_nf4 * (size.weights - NF4_BYTES)))
    bucket = 0 if run.is_undivided else min(BUCKET, trained) * run.element_bytes
    memory = Memory(
        weights=own.weights + frozen.weights + size.weights * _gathered(config, run, parameters + adapters),
        gradients=own.gradients + bucket,
        optimizer=own.optimizer,
        activations=activation_bytes(config, run, stage),
        loss=loss_bytes(config, run, stage),
        update=-(-_update_bytes(run) * trained // dp),
        runtime=cluster.runtime_bytes,
    )
    if zero.offload and cluster.has_gpus:
        memory = _offloaded(memory, zero, own.weights + frozen.weights, 2 * 4 * -(-trained // dp), bucket)
    going_back, updating = replace(memory, update=0), replace(memory, activations=0, loss=0)
    if run.is_undivided and run.num_micro_batches == 1 and not adapters:
        going_back = replace(going_back, gradients=0)  # but the head's, which is among the loss's bytes
    return max(going_back, updating, key=lambda moment: moment.total)


def _offloaded(memory: Memory, zero: Zero, partition: int, summed: int, bucket: int) -> Memory:
    """What of it stays on the device. partition: of the weights; summed: gradients, as added up and as updated with."""
    on_host = memory.optimizer + memory.update + summed
    left = replace(memory, optimizer=0, update=0)
    if zero.stage > 1:
        left = replace(left, gradients=bucket)
    if zero.offload == "parameters":
        on_host += partition
        left = replace(left, weights=left.weights - partition)
    return replace(left, host=on_host)


def peak_memory(config: BloomConfig, run: Run, cluster: Cluster) -> tuple[Stage, Memory]:
    """The stage whose ranks need most, and what one of them needs."""
    parts = [(stage, stage_memory(config, run, stage, cluster)) for stage in stages(config, run.layout.pp)]
    return max(parts, key=lambda part: part[1].total)
