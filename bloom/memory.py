"""Memory of one rank while it trains, by kind. Torch-free.

Legend: s = sequence length, b = sequences of a micro-batch, h = hidden size, a = heads, t = tensor-parallel ranks,
e = bytes of an activation. Sources: Rajbhandari et al. 2020, ZeRO, section 3.1, for the bytes per parameter;
Korthikanti et al. 2022, Reducing Activation Recomputation, section 4, for the bytes per activation.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal

from .cluster import Cluster
from .config import BloomConfig
from .layout import Layout, Stage, stages, vocabulary_rows

Precision = Literal["bf16", "fp16", "fp32"]
Attention = Literal["dense", "megatron", "fused"]


@dataclass(frozen=True, slots=True)
class BytesPerParameter:
    weights: int
    gradients: int
    optimizer: int  # the fp32 master weight and Adam's two moments; ZeRO-1 shares them out over DP


BYTES_PER_PARAMETER: dict[Precision, BytesPerParameter] = {
    # 2 of each micro-batch, and 4 in which they are added up: BLOOM-176B's BF16_Optimizer, and ours.
    "bf16": BytesPerParameter(weights=2, gradients=2 + 4, optimizer=12),
    "fp16": BytesPerParameter(weights=2, gradients=2, optimizer=12),
    "fp32": BytesPerParameter(weights=4, gradients=4, optimizer=12),  # ZeRO-1 keeps a master copy in fp32, too
}
LOSS_WORKSPACE_BYTES = 300_000_000  # at most, for logits that are computed in chunks
LOGIT_BYTES = 4 + 4 + 4  # fp32 logits, their exponentials and their gradients
# Per parameter that a rank updates: three temporaries of services/trainer/optimizer.py's AdamW, and but for bf16, whose
# gradients are summed in one piece already, two fp32 copies: DeepSpeed's stage_1_and_2.py gathers them, then flattens.
UPDATE_BYTES: dict[Precision, int] = {"bf16": 3 * 4, "fp16": 3 * 4 + 2 * 4, "fp32": 3 * 4 + 2 * 4}


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
    attention: Attention = "dense"  # what is kept: as by bloom.attention, by Megatron in 2022, or no scores at all

    def __post_init__(self) -> None:
        for key in ("global_batch", "micro_batch", "seq_length"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} trains nothing; use at least 1")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank={self.lora_rank} is below zero; use 0 to train all parameters")
        if self.precision not in BYTES_PER_PARAMETER:
            raise ValueError(f"precision={self.precision!r} is not known; choose {', '.join(BYTES_PER_PARAMETER)}")
        if self.attention not in ("dense", "megatron", "fused"):
            raise ValueError(f"attention={self.attention!r} is not known; choose dense, megatron or fused")

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

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def kept_bytes(config: BloomConfig, run: Run) -> float:
    """What one layer keeps of a micro-batch for its backward pass, on one tensor rank.

    Whole on each rank, or a 1/t of it with sequence parallelism: the inputs of both LayerNorms, of query_key_value and
    of dense_h_to_4h, 4 e s b h, and with dropout two masks of one byte. (Megatron gathers the latter two inputs anew
    in the backward pass; elsewhere they stay as they were gathered, whole.)
    Cut: query, key, value, the inputs of dense, of GELU and of dense_4h_to_h, 12 e s b h.
    Scores, a s² b of each rank's heads:
    megatron, the probabilities and with dropout its mask and result, which gives Korthikanti's s b h (34 + 5 a s / h);
    dense, the fp32 probabilities (and their 16-bit copy), with dropout factors and result;
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
    working = layer * (2 if run.checkpointing else 1) if stage.num_layers else 0
    return round(in_flight * of_one + working + _bias_bytes(config, run))


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


def stage_memory(config: BloomConfig, run: Run, stage: Stage, cluster: Cluster) -> Memory:
    """Of each rank of one stage: they are alike."""
    parameters = stage.parameters(config, run.layout.tp)
    adapters = stage.adapter_parameters(config, run.layout.tp, run.lora_rank)
    trained = adapters or parameters
    size = BYTES_PER_PARAMETER[run.precision]
    memory = Memory(
        weights=size.weights * (parameters + adapters),
        gradients=size.gradients * trained,
        optimizer=-(-size.optimizer * trained // run.layout.dp),
        activations=activation_bytes(config, run, stage),
        loss=loss_bytes(config, run, stage),
        update=-(-UPDATE_BYTES[run.precision] * trained // run.layout.dp),
        runtime=cluster.runtime_bytes,
    )
    if memory.activations + memory.loss < memory.update:
        return replace(memory, activations=0, loss=0)
    return replace(memory, update=0)


def peak_memory(config: BloomConfig, run: Run, cluster: Cluster) -> tuple[Stage, Memory]:
    """The stage whose ranks need most, and what one of them needs."""
    parts = [(stage, stage_memory(config, run, stage, cluster)) for stage in stages(config, run.layout.pp)]
    return max(parts, key=lambda part: part[1].total)
