"""Storing keys and values in the paged cache, and reading them back.

T = packed tokens, N = heads, D = head dim. A cache is (num_blocks, block_size, N, D). One of int8 or fp8 (e4m3) has
scales (num_blocks, block_size, N) fp32 beside it: a token's D numbers of a head are the stored ones times its scale.
"""

import torch
from torch import Tensor

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # what |x| is scaled to


def store_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    key_norms: Tensor | None = None,
) -> None:
    """Write k, v (T, N, D) to the flat slots (T,) int64: block * block_size + offset. A negative slot is left out.

    Tokens that go to one block must be neighbours in T, in order: a block belongs to one sequence when it is written.
    key_norms: (num_blocks, N) fp32, the largest L2 norm of a key in the block as it is stored; a write to slot 0 begins
    it anew, any other keeps at least what was there.
    """
    if not bool((slots >= 0).all()):
        kept = (slots >= 0).nonzero().squeeze(1)
        k, v, slots = k[kept], v[kept], slots[kept]
    stored = _store(k, k_cache, slots, k_scales)
    _store(v, v_cache, slots, v_scales)
    if key_norms is not None:
        block_size = k_cache.shape[1]
        blocks, norms = slots // block_size, stored.float().norm(dim=-1)  # (T,), (T, N)
        key_norms[blocks[slots % block_size == 0]] = 0.0
        key_norms.scatter_reduce_(0, blocks[:, None].expand_as(norms), norms, "amax")


def _store(x: Tensor, cache: Tensor, slots: Tensor, scales: Tensor | None) -> Tensor:
    """Returns x as it can be read back."""
    if scales is None:
        x = x.to(cache.dtype)
        cache.flatten(0, 1).index_copy_(0, slots, x)
        return x
    quantized, scale = quantize(x, cache.dtype)
    # Bytes: index_copy_ knows no fp8.
    cache.view(torch.int8).flatten(0, 1).index_copy_(0, slots, quantized.view(torch.int8))
    scales.flatten(0, 1).index_copy_(0, slots, scale)
    return quantized.float() * scale[..., None]


def quantize(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x (..., D) as int8 or fp8, and the fp32 scale (...) that makes its largest number the type's largest."""
    scale = x.abs().amax(dim=-1).float() / LARGEST[dtype]
    scaled = x.float() / torch.where(scale > 0, scale, 1.0)[..., None]
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), scale


def read_slots(cache: Tensor, scales: Tensor | None, slots: Tensor) -> Tensor:
    """(len(slots), N, D) in the cache's dtype, or in fp32 from a quantized one. slots: (len,), flat."""
    # index_select: copies whole rows, up to seven times as fast as indexing with a tensor of several dimensions
    if scales is None:
        return cache.flatten(0, 1).index_select(0, slots)
    stored = cache.view(torch.int8).flatten(0, 1).index_select(0, slots).view(cache.dtype)
    return stored.float() * scales.flatten(0, 1).index_select(0, slots)[..., None]
