"""Paged decode attention with ALiBi in Triton: one new token per sequence against its cached context.

B = sequences, N = heads, D = head dim, S = splits. The context is cut into splits of a fixed number of keys; a program
walks some of them, for one sequence and head, block_l keys at a time with an online softmax, and a second kernel adds
them up. A split always begins at a multiple of its length and the sum goes in one order, so a sequence's result
does not depend on its neighbours or on how long the tables are. The twin in naive/paged_attention.py is the definition.

Sources: Kwon et al. 2023, PagedAttention; Dao et al. 2023, Flash-Decoding; Milakov and Gimelshein 2018, online softmax;
Press et al. 2022, ALiBi.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .alibi_skip import kept_words
from .naive.alibi_skip import default_tolerance
from .registers import at_most

SPLIT_KEYS = 256  # per program: 64 programs already at one bloom-560m sequence of 1,024; a word of kept blocks each
BLOCK_L = 64  # keys per step
NUM_WARPS = 8
MAX_REGISTERS = 128
MAX_PROGRAMS = 32  # per sequence and head: each then takes several splits, so that wide tables cost little
REDUCED_AT_ONCE = 16  # splits per step of the sum


@triton.jit(do_not_specialize=["num_splits", "stride_table"])  # type: ignore[untyped-decorator]
def decode_attention_kernel(  # type: ignore[no-untyped-def]
    out_ptr,  # (B, N, D), contiguous; written here if there is one split
    partial_ptr,  # (B, N, S, D) fp32, contiguous; each split's own softmax-weighted mean
    masses_ptr,  # (B, N, S) fp32: log of the sum of exp(score) of a split
    q_ptr,  # (B, N, D)
    k_ptr,  # (num_blocks, block_size, N, D)
    v_ptr,  # the same shape and strides
    k_scales_ptr,  # (num_blocks, block_size, N) fp32, contiguous; None where the cache is not quantized
    v_scales_ptr,
    words_ptr,  # (B, N, S) int32 of kept_words, or None: all are kept
    block_tables_ptr,  # (B, max_blocks) int32
    context_lens_ptr,  # (B,) int32
    slopes_ptr,  # (N,) fp32
    scale,  # 1 / sqrt(D)
    num_splits,
    stride_q_seq,
    stride_q_head,
    stride_block,
    stride_slot,
    stride_head,
    stride_table,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    split_keys: tl.constexpr,
    block_l: tl.constexpr,
    block_d: tl.constexpr,  # head_dim rounded up to a power of two
    has_one_split: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    seq = tl.program_id(2).to(tl.int64)
    num_heads = tl.num_programs(0)
    row = seq * num_heads + head
    context_len = tl.load(context_lens_ptr + seq)
    slope = tl.load(slopes_ptr + head)
    dims = tl.arange(0, block_d)
    in_head = dims < head_dim
    q_offsets = seq * stride_q_seq + head * stride_q_head + dims
    q = tl.load(q_ptr + q_offsets, mask=in_head, other=0.0).to(tl.float32) * scale  # (block_d,)
    # An empty context takes part if its zeros are written here.
    num_needed = 1 if has_one_split else tl.cdiv(context_len, split_keys)
    for split in tl.range(tl.program_id(1), num_needed, tl.num_programs(1)):
        first = split * split_keys
        last = tl.minimum(first + split_keys, context_len)  # exclusive
        word = -1
        if words_ptr is not None:
            word = tl.load(words_ptr + row * num_splits + split, mask=first < context_len, other=0)

        highest = tl.full((), float("-inf"), tl.float32)  # score so far
        total = tl.full((), 0.0, tl.float32)  # of exp(score - highest)
        acc = tl.zeros((block_d,), dtype=tl.float32)  # the values, weighted by the same
        for start in tl.range(first, last, block_l):
            keys = start + tl.arange(0, block_l)
            valid = (keys < last) & (((word >> ((keys - first) // block_size)) & 1) == 1)
            if tl.max(valid.to(tl.int32), axis=0) > 0:
                blocks = tl.load(block_tables_ptr + seq * stride_table + keys // block_size, mask=valid, other=0)
                # int64: a cache holds more than 2^31 numbers.
                blocks, slots = blocks.to(tl.int64), (keys % block_size).to(tl.int64)
                offsets = (blocks * stride_block + slots * stride_slot + head * stride_head)[:, None] + dims[None, :]
                mask = valid[:, None] & in_head[None, :]
                k = tl.load(k_ptr + offsets, mask=mask, other=0.0)  # (block_l, block_d)
                v = tl.load(v_ptr + offsets, mask=mask, other=0.0)  # here: under way while scores are computed
                scores = tl.sum(q[None, :] * k.to(tl.float32), axis=1)
                if k_scales_ptr is not None:
                    scale_offsets = (blocks * block_size + slots) * num_heads + head
                    scores *= tl.load(k_scales_ptr + scale_offsets, mask=valid, other=0.0)
                scores += slope * (keys - (context_len - 1)).to(tl.float32)
                scores = tl.where(valid, scores, float("-inf"))

                new_highest = tl.maximum(highest, tl.max(scores, axis=0))
                rescale = tl.exp(highest - new_highest)
                weights = tl.exp(scores - new_highest)
                total = total * rescale + tl.sum(weights, axis=0)
                if v_scales_ptr is not None:
                    weights *= tl.load(v_scales_ptr + scale_offsets, mask=valid, other=0.0)
                acc = acc * rescale + tl.sum(weights[:, None] * v.to(tl.float32), axis=0)
                highest = new_highest

        mean = acc / tl.where(total > 0, total, 1.0)  # 0 where nothing was read
        if has_one_split:
            tl.store(out_ptr + row * head_dim + dims, mean.to(out_ptr.dtype.element_ty), mask=in_head)
        else:
            part = row * num_splits + split
            tl.store(masses_ptr + part, highest + tl.log(total))
            tl.store(partial_ptr + part * head_dim + dims, mean, mask=tl.where(in_head, total, 0.0) > 0)


@triton.jit(do_not_specialize=["num_splits"])  # type: ignore[untyped-decorator]
def add_splits_kernel(  # type: ignore[no-untyped-def]
    out_ptr,  # (B, N, D), contiguous
    partial_ptr,  # (B, N, S, D) fp32; not written where the mass is 0
    masses_ptr,  # (B, N, S) fp32
    context_lens_ptr,  # (B,) int32
    num_splits,
    head_dim: tl.constexpr,
    block_d: tl.constexpr,
    split_keys: tl.constexpr,
    at_once: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    num_needed = tl.cdiv(tl.load(context_lens_ptr + tl.program_id(1)), split_keys)
    dims = tl.arange(0, block_d)
    in_head = dims < head_dim
    highest = tl.full((), float("-inf"), tl.float32)
    for start in tl.range(0, num_needed, at_once):
        splits = start + tl.arange(0, at_once)
        masses = tl.load(masses_ptr + row * num_splits + splits, mask=splits < num_needed, other=float("-inf"))
        highest = tl.maximum(highest, tl.max(masses, axis=0))
    highest = tl.where(highest > float("-inf"), highest, 0.0)  # an empty context

    total = tl.full((), 0.0, tl.float32)
    acc = tl.zeros((block_d,), dtype=tl.float32)
    for start in tl.range(0, num_needed, at_once):  # the same steps whatever the tables' length
        splits = start + tl.arange(0, at_once)
        masses = tl.load(masses_ptr + row * num_splits + splits, mask=splits < num_needed, other=float("-inf"))
        weights = tl.exp(masses - highest)
        mask = (masses > float("-inf"))[:, None] & in_head[None, :]
        offsets = ((row * num_splits + splits) * head_dim)[:, None] + dims[None, :]
        acc += tl.sum(weights[:, None] * tl.load(partial_ptr + offsets, mask=mask, other=0.0), axis=0)
        total += tl.sum(weights, axis=0)
    out = acc / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + row * head_dim + dims, out.to(out_ptr.dtype.element_ty), mask=in_head)


def paged_decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    slopes: Tensor,
    *,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    key_norms: Tensor | None = None,
    alibi_tolerance: float | None = None,
    max_context_len: int | None = None,
    split_keys: int = SPLIT_KEYS,
    block_l: int = BLOCK_L,
    num_warps: int = NUM_WARPS,
) -> Tensor:
    """See naive.paged_decode_attention; both caches may be views, with the same strides.

    Memory is taken and programs are launched for max_context_len keys of every sequence (in a captured graph: the most
    there can be), which changes no result.
    """
    num_seqs, num_heads, head_dim = q.shape
    block_size = k_cache.shape[1]
    assert q.stride(-1) == k_cache.stride(-1) == block_tables.stride(-1) == 1
    assert k_cache.stride() == v_cache.stride()
    table_keys = block_tables.shape[1] * block_size
    longest = table_keys if max_context_len is None else min(max_context_len, table_keys)
    num_splits = max(1, triton.cdiv(longest, split_keys))
    tolerance = default_tolerance(q.dtype) if alibi_tolerance is None else alibi_tolerance
    words = None
    if key_norms is not None and tolerance > 0:
        assert split_keys % block_size == 0, f"split_keys={split_keys}; choose a multiple of block_size={block_size}"
        words = kept_words(
            q,
            k_cache,
            k_scales,
            key_norms,
            block_tables,
            context_lens,
            slopes,
            tolerance=tolerance,
            num_words=num_splits,
            blocks_per_word=split_keys // block_size,
        )
    out = q.new_empty(num_seqs, num_heads, head_dim)
    has_one_split = num_splits == 1
    partial = masses = None
    if not has_one_split:
        partial = torch.empty(num_seqs, num_heads, num_splits, head_dim, dtype=torch.float32, device=q.device)
        masses = torch.empty(num_seqs, num_heads, num_splits, dtype=torch.float32, device=q.device)
    block_d = triton.next_power_of_2(head_dim)
    decode_attention_kernel[(num_heads, min(num_splits, MAX_PROGRAMS), num_seqs)](
        out,
        partial,
        masses,
        q,
        k_cache,
        v_cache,
        k_scales,
        v_scales,
        words,
        block_tables,
        context_lens,
        slopes,
        head_dim**-0.5,
        num_splits,
        q.stride(0),
        q.stride(1),
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        block_tables.stride(0),
        head_dim=head_dim,
        block_size=block_size,
        split_keys=split_keys,
        block_l=block_l,
        block_d=block_d,
        has_one_split=has_one_split,
        num_warps=num_warps,
        **at_most(MAX_REGISTERS),
    )
    if not has_one_split:
        add_splits_kernel[(num_heads, num_seqs)](
            out,
            partial,
            masses,
            context_lens,
            num_splits,
            head_dim=head_dim,
            block_d=block_d,
            split_keys=split_keys,
            at_once=REDUCED_AT_ONCE,
            num_warps=2,
            **at_most(MAX_REGISTERS),
        )
    return out
