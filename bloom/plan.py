"""What a BLOOM costs before it runs: parameters, bytes, FLOPs, time, energy. Torch-free and dependency-free.

Legend: h = hidden size, L = layers, s = sequence length, V = rows of the embedding, N = parameters, D = tokens.
Sources: the training logs of BLOOM-176B (chronicles of bigscience-workshop/bigscience) and Megatron-DeepSpeed's
FLOP formula, whose figures the tests reproduce; the carbon rule is the model card's.
"""

from dataclasses import dataclass

from .config import BloomConfig

DTYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
# Per parameter: half-precision weight 2, fp32 master weight 4, Adam's two moments 4 + 4.
CHECKPOINT_BYTES = 14
# The same and a half-precision gradient 2. Plain fp32 (weight, gradient, moments) comes to 16 as well.
TRAINING_STATE_BYTES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What runs the training. The defaults are those of BLOOM-176B's run on Jean Zay."""

    num_gpus: int = 384
    peak_flops: float = 312e12  # per GPU and second: A100, bf16
    mfu: float = 0.36  # model FLOPs utilisation: without the recomputed forward
    gpu_kw: float = 0.4  # drawn by one GPU
    kg_co2_per_kwh: float = 0.057  # the French grid

    def __post_init__(self) -> None:
        if self.num_gpus < 1:
            raise ValueError(f"num_gpus={self.num_gpus} computes nothing; use at least 1")
        if not self.peak_flops > 0:
            raise ValueError(f"peak_flops={self.peak_flops} computes nothing; use FLOP per second and GPU, above 0")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu={self.mfu} is no utilisation; use a share above 0 and at most 1")
        for key in ("gpu_kw", "kg_co2_per_kwh"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"{key}={getattr(self, key)} is below zero; use 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Every figure of one run; `dataclasses.asdict` gives its JSON."""

    parameters: int
    embedding_parameters: int  # word embeddings, shared with the head
    weight_bytes: dict[str, int]  # by dtype
    checkpoint_bytes: int  # weights and optimizer, mixed precision
    training_state_bytes: int  # the same and gradients; activations come on top
    training_state_bytes_per_gpu: int  # ZeRO-1 data parallel: the optimizer's 12 B per parameter are shared out
    kv_bytes_per_token: dict[str, int]  # keys and values of all layers, by dtype
    seq_length: int
    tokens: int
    flops_per_token: float  # forward and backward, exact
    flops_per_token_6n: int  # the usual estimate, 6N
    total_flops: float
    num_gpus: int
    seconds: float
    gpu_hours: float
    energy_kwh: float
    co2_kg: float


def plan(
    config: BloomConfig,
    *,
    tokens: int = 366_000_000_000,
    seq_length: int | None = None,
    machine: Machine | None = None,
) -> Plan:
    """Figures for training config on `tokens` tokens (BLOOM's own run by default) in sequences of seq_length.

    Raises ValueError where tokens or seq_length is below its minimum.
    """
    machine = machine or Machine()
    seq_length = config.seq_length if seq_length is None else seq_length
    if tokens < 0:
        raise ValueError(f"tokens={tokens} is below zero; use 0 or more")
    if seq_length < 1:
        raise ValueError(f"seq_length={seq_length} is empty; use at least 1 token")
    n = config.parameters
    per_token = flops_per_token(config, seq_length=seq_length)
    seconds = per_token * tokens / (machine.num_gpus * machine.peak_flops * machine.mfu)
    gpu_hours = seconds * machine.num_gpus / 3600
    energy_kwh = gpu_hours * machine.gpu_kw
    return Plan(
        parameters=n,
        embedding_parameters=config.vocab_size * config.hidden_size,
        weight_bytes={dtype: size * n for dtype, size in DTYPE_BYTES.items()},
        checkpoint_bytes=CHECKPOINT_BYTES * n,
        training_state_bytes=TRAINING_STATE_BYTES * n,
        training_state_bytes_per_gpu=training_state_bytes_per_gpu(n, dp=machine.num_gpus),
        kv_bytes_per_token={dtype: size * kv_values_per_token(config) for dtype, size in DTYPE_BYTES.items()},
        seq_length=seq_length,
        tokens=tokens,
        flops_per_token=per_token,
        flops_per_token_6n=6 * n,
        total_flops=per_token * tokens,
        num_gpus=machine.num_gpus,
        seconds=seconds,
        gpu_hours=gpu_hours,
        energy_kwh=energy_kwh,
        co2_kg=energy_kwh * machine.kg_co2_per_kwh,
    )


def flops_per_token(config: BloomConfig, *, seq_length: int, recompute: bool = False) -> float:
    """FLOPs of one training token: 24 f L h² (1 + s/(6h) + V/(16 L h)), f = 3.

    With activation recompute f = 4: hardware FLOPs, what BLOOM's logs count as TFLOPs per GPU.
    """
    h, layers = config.hidden_size, config.n_layer
    passes = 4 if recompute else 3
    return 24 * passes * layers * h * h * (1 + seq_length / (6 * h) + config.vocab_size / (16 * layers * h))


def kv_values_per_token(config: BloomConfig) -> int:
    """Numbers that the paged cache keeps for one token: a key and a value in every layer."""
    return 2 * config.n_layer * config.hidden_size


def training_state_bytes_per_gpu(parameters: int, *, dp: int) -> int:
    """ZeRO-1 over dp ranks: weights and gradients (2 + 2 B) on each, the optimizer's 12 B shared out."""
    return 4 * parameters + -(-12 * parameters // dp)
