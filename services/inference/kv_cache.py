"""The paged key-value cache: its size, its storage.

L = layers, N = heads, D = head dim
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bloom.config import BloomConfig
from services.inference.config import EngineConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSize:
    """How many blocks there are, and the longest sequence that they and the settings allow."""

    num_blocks: int
    block_size: int  # tokens
    max_sequence_tokens: int


def size_cache(model: BloomConfig, config: EngineConfig, *, dtype: torch.dtype, free_bytes: int) -> CacheSize:
    """Fit the cache into `free_bytes`; no larger than `max_running` sequences of full length can use.

    Raises ValueError, naming the setting to change, when not one block fits.
    """
    block_bytes = 2 * model.n_layer * config.block_size * model.hidden_size * dtype.itemsize
    wanted_tokens = config.max_sequence_tokens or max(2048, model.seq_length)
    wanted_blocks = -(-wanted_tokens // config.block_size) * config.max_running
    num_blocks = min(free_bytes // block_bytes, wanted_blocks)
    if num_blocks < 1:
        raise ValueError(
            f"a cache block takes {block_bytes} bytes, but the cache may have {free_bytes}; "
            "raise ANTHESIS_INFERENCE_MAX_KV_BYTES or ANTHESIS_INFERENCE_KV_MEMORY_FRACTION"
        )
    return CacheSize(
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_sequence_tokens=min(wanted_tokens, num_blocks * config.block_size),
    )


class KVCache:
    """Keys and values of every layer, in blocks. Uninitialised: no attention reads a slot before it was written."""

    def __init__(self, model: BloomConfig, size: CacheSize, *, dtype: torch.dtype, device: torch.device) -> None:
        shape = (model.n_layer, size.num_blocks, size.block_size, model.n_head, model.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # (L, num_blocks, block_size, N, D)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.block_size = size.block_size

    def store(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write (T, N, D) keys and values to the flat slots (T,): block * block_size + offset."""
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, keys)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, values)

    def copy_blocks(self, copies: NDArray[np.int32]) -> None:
        """Copy whole blocks, in every layer: `copies` (C, 2) are source and target."""
        if len(copies):
            source, target = torch.from_numpy(copies).to(self.keys.device, torch.int64).unbind(dim=1)
            for cache in (self.keys, self.values):
                cache.index_copy_(1, target, cache.index_select(1, source))

    def gather(self, layer: int, block_table: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values (num_tokens, N, D) of one sequence, by its blocks."""
        keys = self.keys[layer].index_select(0, block_table).flatten(0, 1)[:num_tokens]
        values = self.values[layer].index_select(0, block_table).flatten(0, 1)[:num_tokens]
        return keys, values
