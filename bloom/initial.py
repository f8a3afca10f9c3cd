"""Weights before training."""

import hashlib

import torch
from torch import Tensor

from .config import BloomConfig
from .tensors import expected_tensors


def initial_tensor(config: BloomConfig, name: str, seed: int, *, std: float | None = None) -> Tensor:
    """The whole tensor `name` (canonical) in fp32, drawn as BLOOM's were.

    N(0, std), the two layers that write to the residual N(0, std/sqrt(2L)); LayerNorms 1, biases 0. std defaults to the
    configuration's initializer_range; BLOOM passed 0.0048 = sqrt(1/(3H)) of the 176B model for all sizes. Drawn on the
    CPU from a seed of its own: the same on every device, and a rank draws no tensor that it does not hold.
    """
    shape = expected_tensors(config)[name]
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if len(shape) == 1:  # a LayerNorm's weight
        return torch.ones(shape)
    std = config.initializer_range if std is None else std
    writes_residual = name.endswith(("self_attention.dense.weight", "mlp.dense_4h_to_h.weight"))
    scale = std / (2 * config.n_layer) ** 0.5 if writes_residual else std
    return torch.randn(shape, generator=own_generator(seed, name)).mul_(scale)


def own_generator(seed: int, name: str) -> torch.Generator:
    """On the CPU, of the tensor `name` alone."""
    own_seed = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8]) >> 1
    return torch.Generator().manual_seed(own_seed)
