"""Storing keys and values in the paged cache, in Triton; the twin in naive/kv_cache.py is the definition.

T = packed tokens, N = heads, D = head dim. One program per head and token; the first token of a block does the work of
all of this call's tokens in that block, so that the block's largest norm has one writer and no atomics.
"""

import triton
import triton.language as tl
from torch import Tensor

from .naive.kv_cache import LARGEST

NUM_WARPS = 4


@triton.jit(do_not_specialize=["num_tokens"])  # type: ignore[untyped-decorator]
def store_kv_kernel(  # type: ignore[no-untyped-def]
    k_ptr,  # (T, N, D)
    v_ptr,  # (T, N, D)
    k_cache_ptr,  # (num_blocks, block_size, N, D)
    v_cache_ptr,  # the same shape and strides
    k_scales_ptr,  # (num_blocks, block_size, N) fp32, contiguous; None where the cache is not quantized
    v_scales_ptr,
    key_norms_ptr,  # (num_blocks, N) fp32, contiguous, or None
    slots_ptr,  # (T,) int64
    num_tokens,
    stride_k_token,
    stride_k_head,
    stride_v_token,
    stride_v_head,
    stride_block,
    stride_slot,
    stride_cache_head,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    rows: tl.constexpr,  # block_size rounded up to a power of two
    block_d: tl.constexpr,  # head_dim rounded up to a power of two
    largest: tl.constexpr,  # what a quantized |x| is scaled to
):
    head = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1).to(tl.int64)
    num_heads = tl.num_programs(0)
    slot = tl.load(slots_ptr + token)
    before = tl.load(slots_ptr + token - 1, mask=token > 0, other=-1)
    block = slot // block_size
    is_first = (slot >= 0) & ((before < 0) | (before // block_size != block))
    if is_first:
        tokens = token + tl.arange(0, rows)
        slots = tl.load(slots_ptr + tokens, mask=tokens < num_tokens, other=-1)
        mine = (slots >= 0) & (slots // block_size == block)
        dims = tl.arange(0, block_d)
        mask = mine[:, None] & (dims < head_dim)[None, :]
        k_source = (tokens * stride_k_token + head * stride_k_head)[:, None] + dims[None, :]
        v_source = (tokens * stride_v_token + head * stride_v_head)[:, None] + dims[None, :]
        offsets = block * stride_block + (slots % block_size) * stride_slot + head * stride_cache_head
        target = offsets[:, None] + dims[None, :]
        scales = slots * num_heads + head
        k = tl.load(k_ptr + k_source, mask=mask, other=0.0).to(tl.float32)  # (rows, block_d)
        v = tl.load(v_ptr + v_source, mask=mask, other=0.0).to(tl.float32)
        if k_scales_ptr is None:
            stored = k.to(k_cache_ptr.dtype.element_ty)
            norms = tl.sqrt(tl.sum(stored.to(tl.float32) * stored.to(tl.float32), axis=1))
            tl.store(k_cache_ptr + target, stored, mask=mask)
            tl.store(v_cache_ptr + target, v.to(v_cache_ptr.dtype.element_ty), mask=mask)
        else:
            stored, scale = quantize(k, k_cache_ptr.dtype.element_ty, largest)
            norms = tl.sqrt(tl.sum(stored.to(tl.float32) * stored.to(tl.float32), axis=1)) * scale
            tl.store(k_cache_ptr + target, stored, mask=mask)
            tl.store(k_scales_ptr + scales, scale, mask=mine)
            stored, scale = quantize(v, v_cache_ptr.dtype.element_ty, largest)
            tl.store(v_cache_ptr + target, stored, mask=mask)
            tl.store(v_scales_ptr + scales, scale, mask=mine)
        if key_norms_ptr is not None:
            norm_ptr = key_norms_ptr + block * num_heads + head
            highest = tl.max(tl.where(mine, norms, 0.0), axis=0)
            if slot % block_size != 0:  # the block goes on
                highest = tl.maximum(highest, tl.load(norm_ptr))
            tl.store(norm_ptr, highest)


@triton.jit  # type: ignore[untyped-decorator]
def quantize(x, dtype: tl.constexpr, largest: tl.constexpr):  # type: ignore[no-untyped-def]
    """x (rows, block_d) fp32 as int8 or fp8, and the scale of each row."""
    scale = tl.div_rn(tl.max(tl.abs(x), axis=1), tl.full((x.shape[0],), largest, tl.float32))
    scaled = tl.div_rn(x, tl.broadcast_to(tl.where(scale > 0, scale, 1.0)[:, None], x.shape))
    if dtype == tl.int8:
        scaled = (scaled + 12582912.0) - 12582912.0  # 1.5 * 2^23: rounds to an integer, half to even
    return scaled.to(dtype), scale


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
    num_warps: int = NUM_WARPS,
) -> None:
    """See naive.store_kv; k and v may be views, the caches too if their strides are the same."""
    num_tokens, num_heads, head_dim = k.shape
    assert k_cache.stride() == v_cache.stride()
    assert k.stride(-1) == v.stride(-1) == k_cache.stride(-1) == slots.stride(0) == 1
    for beside in (k_scales, v_scales, key_norms):
        assert beside is None or beside.is_contiguous()
    block_size = k_cache.shape[1]
    store_kv_kernel[(num_heads, num_tokens)](
        k,
        v,
        k_cache,
        v_cache,
        k_scales,
        v_scales,
        key_norms,
        slots,
        num_tokens,
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        head_dim=head_dim,
        block_size=block_size,
        rows=triton.next_power_of_2(block_size),
        block_d=triton.next_power_of_2(head_dim),
        largest=LARGEST.get(k_cache.dtype, 1.0),
        num_warps=num_warps,
    )
