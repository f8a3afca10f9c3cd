"""The paged key-value cache of torch executors: its formats, its storage.

L = layers, N = heads, D = head dim, all of this rank
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bloom.config import BloomConfig
from bloom.kernels import store_kv
from bloom.parallel import Shard

FORMATS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}
_QUANTIZED = (torch.int8, torch.float8_e4m3fn)


@dataclass(frozen=True, slots=True, eq=False)
class LayerCache:
    """One layer's blocks, as the kernels take them."""

    keys: Tensor  # (num_blocks, block_size, N, D)
    values: Tensor
    key_scales: Tensor | None  # (num_blocks, block_size, N) fp32, of int8 and fp8
    value_scales: Tensor | None
    key_norms: Tensor | None  # (num_blocks, N) fp32, where kernels skip blocks by them


class KVCache:
    """Keys and values of a rank's layers and heads, in blocks. No attention reads a slot before it was written."""

    def __init__(
        self,
        model: BloomConfig,
        shard: Shard,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.head_dim = model.head_dim
        self._first_layer = shard.first_layer
        num_heads = len(range(model.n_head)[shard.heads(model)])
        slots = (shard.num_layers, num_blocks, block_size, num_heads)
        norms = (shard.num_layers, num_blocks, num_heads)

        def take(shape: tuple[int, ...], number_format: torch.dtype) -> Tensor:
            taken = torch.empty(shape, dtype=number_format, device=device)
            # Written at once on a CPU: a page that the operating system has handed out cannot be missing later.
            return taken if device.type == "cuda" else taken.fill_(0)

        keys, values = (take((*slots, model.head_dim), dtype) for _ in range(2))
        scales = [take(slots, torch.float32) for _ in range(2 if dtype in _QUANTIZED else 0)]
        key_norms = take(norms, torch.float32) if device.type == "cuda" else None  # torch skips nothing
        self._tensors = [keys, values, *scales, *([] if key_norms is None else [key_norms])]
        self._layers = [
            LayerCache(
                keys[i],
                values[i],
                scales[0][i] if scales else None,
                scales[1][i] if scales else None,
                None if key_norms is None else key_norms[i],
            )
            for i in range(shard.num_layers)
        ]

    @staticmethod
    def block_bytes(model: BloomConfig, shard: Shard, *, block_size: int, dtype: torch.dtype) -> int:
        """Bytes of one block in all of this rank's layers."""
        num_heads = len(range(model.n_head)[shard.heads(model)])
        scale_bytes = 4 if dtype in _QUANTIZED else 0
        per_head = 2 * block_size * (model.head_dim * dtype.itemsize + scale_bytes) + 4  # 4: the key norm
        return shard.num_layers * num_heads * per_head

    def layer(self, layer: int) -> LayerCache:
        """By the layer's number in the whole model."""
        return self._layers[layer - self._first_layer]

    def store(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write (T, N, D) keys and values to the flat slots (T,): block * block_size + offset; negative: nowhere."""
        cached = self.layer(layer)
        store_kv(
            keys,
            values,
            cached.keys,
            cached.values,
            slots,
            k_scales=cached.key_scales,
            v_scales=cached.value_scales,
            key_norms=cached.key_norms,
        )

    def copy_blocks(self, copies: NDArray[np.int32]) -> None:
        """Copy whole blocks, in every layer: `copies` (C, 2) are source and target."""
        if len(copies):
            source, target = torch.from_numpy(copies).to(self._tensors[0].device, torch.int64).unbind(dim=1)
            for tensor in self._tensors:
                tensor[:, target] = tensor[:, source]
