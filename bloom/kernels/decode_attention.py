"""Paged decode attention with ALiBi in Triton: one new token per sequence against its cached context.

B = sequences, N = heads, D = head dim. One program per sequence and head walks the context block_l keys at a time with
an online softmax; the twin in naive.py is the definition. Splitting a long context over programs is not done here.

Sources: Kwon et al. 2023, PagedAttention; Milakov and Gimelshein 2018, online softmax; Press et al. 2022, ALiBi.
"""

import triton
import triton.language as tl
from torch import Tensor

# Keys per step, and warps that share them: with 4 warps ptxas spills for D > 64 where strides are not known to divide
# by 16; with 8 it takes under 80 registers for known strides and up to 191 for others (sm_90). Not yet timed on a GPU.
BLOCK_L = 64
NUM_WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]
def paged_decode_attention_kernel(  # type: ignore[no-untyped-def]
    out_ptr,  # (B, N, D), contiguous
    q_ptr,  # (B, N, D)
    k_ptr,  # (num_blocks, block_size, N, D)
    v_ptr,  # the same shape and strides
    block_tables_ptr,  # (B, max_blocks) int32
    context_lens_ptr,  # (B,) int32
    slopes_ptr,  # (N,) fp32
    scale,  # 1 / sqrt(D)
    stride_q_seq,
    stride_q_head,
    stride_block,
    stride_slot,
    stride_head,
    stride_table,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    block_l: tl.constexpr,
    block_d: tl.constexpr,  # head_dim rounded up to a power of two
):
    seq = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    context_len = tl.load(context_lens_ptr + seq)
    slope = tl.load(slopes_ptr + head)
    dims = tl.arange(0, block_d)
    in_head = dims < head_dim
    q_offsets = seq * stride_q_seq + head * stride_q_head + dims
    q = tl.load(q_ptr + q_offsets, mask=in_head, other=0.0).to(tl.float32) * scale  # (block_d,)

    highest = float("-inf")  # score so far
    total = 0.0  # of exp(score - highest)
    acc = tl.zeros((block_d,), dtype=tl.float32)  # the values, weighted by the same
    for start in tl.range(0, context_len, block_l):
        keys = start + tl.arange(0, block_l)
        valid = keys < context_len
        blocks = tl.load(block_tables_ptr + seq * stride_table + keys // block_size, mask=valid, other=0)
        # int64: a cache holds more than 2^31 numbers.
        slots = blocks.to(tl.int64) * stride_block + (keys % block_size).to(tl.int64) * stride_slot + head * stride_head
        offsets = slots[:, None] + dims[None, :]
        mask = valid[:, None] & in_head[None, :]
        k = tl.load(k_ptr + offsets, mask=mask, other=0.0).to(tl.float32)  # (block_l, block_d)
        scores = tl.sum(q[None, :] * k, axis=1) + slope * (keys - (context_len - 1)).to(tl.float32)
        scores = tl.where(valid, scores, float("-inf"))

        new_highest = tl.maximum(highest, tl.max(scores, axis=0))
        rescale = tl.exp(highest - new_highest)
        weights = tl.exp(scores - new_highest)
        v = tl.load(v_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        acc = acc * rescale + tl.sum(weights[:, None] * v, axis=0)
        total = total * rescale + tl.sum(weights, axis=0)
        highest = new_highest

    out_offsets = (seq * tl.num_programs(1) + head) * head_dim + dims
    tl.store(out_ptr + out_offsets, (acc / total).to(out_ptr.dtype.element_ty), mask=in_head)


def paged_decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, context_lens: Tensor, slopes: Tensor
) -> Tensor:
    """See naive.paged_decode_attention; both caches may be views, with the same strides."""
    num_seqs, num_heads, head_dim = q.shape
    assert q.stride(-1) == k_cache.stride(-1) == block_tables.stride(-1) == 1
    assert k_cache.stride() == v_cache.stride()
    out = q.new_empty(num_seqs, num_heads, head_dim)
    paged_decode_attention_kernel[(num_seqs, num_heads)](
        out,
        q,
        k_cache,
        v_cache,
        block_tables,
        context_lens,
        slopes,
        head_dim**-0.5,
        q.stride(0),
        q.stride(1),
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        block_tables.stride(0),
        head_dim=head_dim,
        block_size=k_cache.shape[1],
        block_l=BLOCK_L,
        block_d=triton.next_power_of_2(head_dim),
        num_warps=NUM_WARPS,
    )
    return out
