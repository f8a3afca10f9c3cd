"""Which blocks a decoding query may leave out, in Triton; naive/alibi_skip.py has the bound and its proof.

B = sequences, N = heads, D = head dim, W = words of a table. One program per sequence and head: it needs the query, its
own key and one number per block, and spares the attention kernel two whole blocks for each one left out. Its decisions
are bits, one word for each split of the attention kernel.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .naive.alibi_skip import ROUNDING

CHUNK = 128  # blocks per step; the running sum goes on from chunk to chunk, always in the same order
NUM_WARPS = 2


@triton.jit  # type: ignore[untyped-decorator]
def bound_of_block(q_norm, key_norm, own, slope, nearest, scale, block_size: tl.constexpr, rounding: tl.constexpr):  # type: ignore[no-untyped-def]
    """Most that a block's keys can weigh, as a share of the query's own key."""
    log_size: tl.constexpr = math.log(block_size)
    exponent = q_norm * key_norm * scale * (1 + rounding) - slope * nearest * (1 - rounding) - own + log_size
    return tl.exp(tl.minimum(exponent, 80.0))  # NaN, from norms never written, becomes e^80 and is kept


@triton.jit(do_not_specialize=["num_words", "stride_table"])  # type: ignore[untyped-decorator]
def kept_words_kernel(  # type: ignore[no-untyped-def]
    words_ptr,  # (B, N, W) int32, contiguous
    q_ptr,  # (B, N, D)
    k_ptr,  # (num_blocks, block_size, N, D)
    k_scales_ptr,  # (num_blocks, block_size, N) fp32, contiguous, or None
    key_norms_ptr,  # (num_blocks, N) fp32, contiguous
    block_tables_ptr,  # (B, max_blocks) int32
    context_lens_ptr,  # (B,) int32
    slopes_ptr,  # (N,) fp32
    scale,  # 1 / sqrt(D)
    tolerance,
    num_words,
    stride_q_seq,
    stride_q_head,
    stride_block,
    stride_slot,
    stride_head,
    stride_table,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    block_d: tl.constexpr,
    chunk: tl.constexpr,
    blocks_per_word: tl.constexpr,
    rounding: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    seq = tl.program_id(1).to(tl.int64)
    num_heads = tl.num_programs(0)
    context_len = tl.load(context_lens_ptr + seq)
    if context_len > 0:
        last = context_len - 1
        slope = tl.load(slopes_ptr + head)
        dims = tl.arange(0, block_d)
        in_head = dims < head_dim
        q = tl.load(q_ptr + seq * stride_q_seq + head * stride_q_head + dims, mask=in_head, other=0.0).to(tl.float32)
        own_block = tl.load(block_tables_ptr + seq * stride_table + last // block_size).to(tl.int64)
        own_offset = own_block * stride_block + (last % block_size).to(tl.int64) * stride_slot + head * stride_head
        own = tl.sum(q * tl.load(k_ptr + own_offset + dims, mask=in_head, other=0.0).to(tl.float32), axis=0) * scale
        if k_scales_ptr is not None:
            own *= tl.load(k_scales_ptr + (own_block * block_size + last % block_size) * num_heads + head)
        q_norm = tl.sqrt(tl.sum(q * q, axis=0))

        total = tl.full((), 0.0, tl.float32)
        num_blocks = last // block_size + 1
        for start in tl.range(0, num_blocks, chunk):
            blocks = start + tl.arange(0, chunk)
            exists = blocks < num_blocks
            ids = tl.load(block_tables_ptr + seq * stride_table + blocks, mask=exists, other=0).to(tl.int64)
            norms = tl.load(key_norms_ptr + ids * num_heads + head, mask=exists, other=0.0)
            nearest = last - (blocks * block_size + (block_size - 1))
            bound = bound_of_block(q_norm, norms, own, slope, nearest.to(tl.float32), scale, block_size, rounding)
            candidate = exists & (nearest >= 0) & (bound <= tolerance)
            masses = tl.where(candidate, bound, 0.0)
            skipped = candidate & (total + tl.cumsum(masses, axis=0) <= tolerance)
            total += tl.sum(masses, axis=0)
            kept = (exists & (skipped == 0)).to(tl.int32).reshape(chunk // blocks_per_word, blocks_per_word)
            bits = tl.sum(kept << tl.arange(0, blocks_per_word)[None, :], axis=1)
            words = start // blocks_per_word + tl.arange(0, chunk // blocks_per_word)
            tl.store(words_ptr + (seq * num_heads + head) * num_words + words, bits, mask=words < num_words)


def kept_words(
    q: Tensor,
    k_cache: Tensor,
    k_scales: Tensor | None,
    key_norms: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    slopes: Tensor,
    *,
    tolerance: float,
    num_words: int,
    blocks_per_word: int,
    chunk: int = CHUNK,
    num_warps: int = NUM_WARPS,
) -> Tensor:
    """(B, N, num_words) int32: bit i of word w is set where block w * blocks_per_word + i has to be read.

    Words past a sequence's context are not written. Arguments as in naive.paged_decode_attention.
    """
    num_seqs, num_heads, head_dim = q.shape
    assert key_norms.is_contiguous()
    assert 2 <= blocks_per_word <= 32, f"{blocks_per_word} blocks do not fit a word; choose another split"
    words = torch.empty(num_seqs, num_heads, num_words, dtype=torch.int32, device=q.device)
    kept_words_kernel[(num_heads, num_seqs)](
        words,
        q,
        k_cache,
        k_scales,
        key_norms,
        block_tables,
        context_lens,
        slopes,
        head_dim**-0.5,
        tolerance,
        num_words,
        q.stride(0),
        q.stride(1),
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        block_tables.stride(0),
        head_dim=head_dim,
        block_size=k_cache.shape[1],
        block_d=triton.next_power_of_2(head_dim),
        chunk=chunk,
        blocks_per_word=blocks_per_word,
        rounding=ROUNDING,
        num_warps=num_warps,
    )
    return words
