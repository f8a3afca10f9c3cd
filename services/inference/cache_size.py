"""How large the key-value cache is, and in which numbers. Torch-free."""

from dataclasses import dataclass

from bloom.config import BloomConfig
from services.inference.config import EngineConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSize:
    """How many blocks there are, and the longest sequence that they and the settings allow."""

    num_blocks: int
    block_size: int  # tokens
    max_sequence_tokens: int


def max_sequence_tokens(model: BloomConfig, config: EngineConfig) -> int:
    """Of prompt and output together, where the cache has room for it."""
    return config.max_sequence_tokens or max(2048, model.seq_length)


def size_cache(model: BloomConfig, config: EngineConfig, *, room: int) -> CacheSize:
    """As many blocks as there is `room` for (`max_blocks`), no more than `max_running` full sequences can use.

    Raises ValueError, naming the setting to change, when not one block fits.
    """
    wanted_tokens = max_sequence_tokens(model, config)
    wanted_blocks = -(-wanted_tokens // config.block_size) * config.max_running
    num_blocks = min(room, wanted_blocks)
    if num_blocks < 1:
        raise ValueError(
            "not one cache block fits into the memory that the cache may have; raise "
            "ANTHESIS_INFERENCE_MAX_KV_BYTES or ANTHESIS_INFERENCE_KV_MEMORY_FRACTION"
        )
    return CacheSize(
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_sequence_tokens=min(wanted_tokens, num_blocks * config.block_size),
    )


def choose_kv_dtype(config: EngineConfig, device: str, computed: str) -> str:
    """The cache's number format, where the model computes in `computed`. Raises ValueError for fp8 without CUDA."""
    if config.kv_dtype == "fp8" and device != "cuda":
        raise ValueError("kv_dtype='fp8' needs CUDA; use 'int8', which takes as little memory, or 'auto'")
    return computed if config.kv_dtype == "auto" else config.kv_dtype
