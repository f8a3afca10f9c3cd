"""Causal attention of packed chunks over the paged cache, with ALiBi, in Triton.

T = packed new tokens, B = sequences, N = heads, D = head dim, M = rows of a tile. A program takes block_m rows of one
sequence and one head, and walks the context block_n keys at a time. Steps begin at multiples of block_n, and a row that
leaves a block out gets exactly nothing from it, so a row's result does not depend on how its sequence was cut into
chunks or on what else is in the batch. The twin in naive/paged_attention.py is the definition.

Sources: Dao et al. 2022, FlashAttention; Kwon et al. 2023, PagedAttention; Press et al. 2022, ALiBi.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .alibi_skip import bound_of_block
from .naive.alibi_skip import ROUNDING, default_tolerance
from .registers import at_most

# (rows of a tile, keys of a step, warps, stages): what leaves no register spilled on sm_80 and up at a head of 128. Not
# yet timed on a GPU. fp32 is multiplied without tensor cores.
CONFIGS = {torch.float32: (16, 16, 8, 1), torch.bfloat16: (64, 32, 8, 3), torch.float16: (64, 32, 8, 3)}
LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["num_seqs", "stride_table"])  # type: ignore[untyped-decorator]
def prefill_attention_kernel(  # type: ignore[no-untyped-def]
    out_ptr,  # (T, N, D), contiguous
    q_ptr,  # (T, N, D)
    k_ptr,  # (num_blocks, block_size, N, D)
    v_ptr,  # the same shape and strides
    k_scales_ptr,  # (num_blocks, block_size, N) fp32, contiguous; None where the cache is not quantized
    v_scales_ptr,
    key_norms_ptr,  # (num_blocks, N) fp32, contiguous, or None: no block is left out
    blocks_read_ptr,  # (N,) int32, a counter of the blocks loaded, or None
    block_tables_ptr,  # (B, max_blocks) int32
    query_starts_ptr,  # (B + 1,) int32
    context_lens_ptr,  # (B,) int32
    slopes_ptr,  # (N,) fp32
    scale,  # 1 / sqrt(D)
    tolerance,
    num_seqs,
    stride_q_token,
    stride_q_head,
    stride_block,
    stride_slot,
    stride_head,
    stride_table,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_d: tl.constexpr,  # head_dim rounded up to a power of two
    max_seqs: tl.constexpr,  # num_seqs rounded up to a power of two
    rounding: tl.constexpr,
    log2_e: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    num_heads = tl.num_programs(0)
    seq, first_row, end_row = rows_of_tile(tl.program_id(1), query_starts_ptr, num_seqs, block_m, max_seqs)
    if first_row < end_row:
        context_len = tl.load(context_lens_ptr + seq)
        slope = tl.load(slopes_ptr + head)
        table_ptr = block_tables_ptr + seq * stride_table
        rows = first_row + tl.arange(0, block_m)
        in_chunk = rows < end_row
        positions = context_len - end_row + rows  # of the queries in their sequence
        last = context_len - end_row + tl.minimum(first_row + block_m, end_row) - 1  # of them
        dims = tl.arange(0, block_d)
        in_head = dims < head_dim
        row_offsets = rows.to(tl.int64)[:, None]
        q_mask = in_chunk[:, None] & in_head[None, :]
        q = tl.load(q_ptr + row_offsets * stride_q_token + head * stride_q_head + dims[None, :], mask=q_mask, other=0.0)
        columns = tl.arange(0, block_n)
        head_offset = head * stride_head

        if key_norms_ptr is not None:
            own_blocks = tl.load(table_ptr + positions // block_size, mask=in_chunk, other=0).to(tl.int64)
            own_slots = positions % block_size
            own_offsets = own_blocks * stride_block + own_slots.to(tl.int64) * stride_slot + head_offset
            own_keys = tl.load(k_ptr + own_offsets[:, None] + dims[None, :], mask=q_mask, other=0.0).to(tl.float32)
            own = tl.sum(q.to(tl.float32) * own_keys, axis=1) * scale  # (block_m,)
            if k_scales_ptr is not None:
                own_scales = (own_blocks * block_size + own_slots) * num_heads + head
                own *= tl.load(k_scales_ptr + own_scales, mask=in_chunk, other=0.0)
            q_norms = tl.sqrt(tl.sum(q.to(tl.float32) * q.to(tl.float32), axis=1))
            left_out = tl.zeros((block_m,), dtype=tl.float32)  # mass so far

        begin = 0
        if key_norms_ptr is not None:
            # Most often the blocks left out are the oldest. Passing over these first leaves the loop below without a
            # branch, so that its loads can be pipelined.
            needed = 0
            while (needed == 0) & (begin <= last):
                _, needed, mass = needed_blocks(
                    key_norms_ptr, table_ptr, begin, last, positions, in_chunk, q_norms, own, slope, scale, tolerance,
                    left_out, head, num_heads, block_size, block_n, rounding,
                )  # fmt: skip
                left_out = tl.where(needed == 0, mass, left_out)
                begin += tl.where(needed == 0, block_n, 0)

        highest = tl.full((block_m,), float("-inf"), dtype=tl.float32)
        total = tl.zeros((block_m,), dtype=tl.float32)
        acc = tl.zeros((block_m, block_d), dtype=tl.float32)
        for start in tl.range(begin, last + 1, block_n):
            keys = start + columns
            valid = keys <= last
            visible = keys[None, :] <= positions[:, None]  # (block_m, block_n)
            if key_norms_ptr is not None:
                kept, needed, left_out = needed_blocks(
                    key_norms_ptr, table_ptr, start, last, positions, in_chunk, q_norms, own, slope, scale, tolerance,
                    left_out, head, num_heads, block_size, block_n, rounding,
                )  # fmt: skip
                valid &= ((needed >> (columns // block_size)) & 1) == 1
                visible &= ((kept[:, None] >> (columns // block_size)[None, :]) & 1) == 1
                if blocks_read_ptr is not None:
                    for i in tl.static_range(block_n // block_size):
                        tl.atomic_add(blocks_read_ptr + head, (needed >> i) & 1)
            blocks = tl.load(table_ptr + keys // block_size, mask=valid, other=0).to(tl.int64)
            slots = keys % block_size
            offsets = blocks * stride_block + slots.to(tl.int64) * stride_slot + head_offset
            kt_mask = valid[None, :] & in_head[:, None]
            kt = tl.load(k_ptr + offsets[None, :] + dims[:, None], mask=kt_mask, other=0.0)  # (block_d, block_n)
            # int8 and fp8 are exact in q's dtype
            scores = tl.dot(q, kt.to(tl.float32).to(q.dtype), input_precision="ieee") * scale
            scale_offsets = (blocks * block_size + slots) * num_heads + head
            if k_scales_ptr is not None:
                scores *= tl.load(k_scales_ptr + scale_offsets, mask=valid, other=0.0)[None, :]
            scores += slope * (keys[None, :] - positions[:, None]).to(tl.float32)
            scores = tl.where(visible, scores * log2_e, float("-inf"))

            new_highest = tl.maximum(highest, tl.max(scores, axis=1))
            seen = tl.where(new_highest > float("-inf"), new_highest, 0.0)  # a row may have left out all so far
            rescale = tl.exp2(highest - seen)
            weights = tl.exp2(scores - seen[:, None])
            total = total * rescale + tl.sum(weights, axis=1)
            v_mask = valid[:, None] & in_head[None, :]
            v = tl.load(v_ptr + offsets[:, None] + dims[None, :], mask=v_mask, other=0.0)  # (block_n, block_d)
            if v_scales_ptr is not None:
                weights *= tl.load(v_scales_ptr + scale_offsets, mask=valid, other=0.0)[None, :]
            acc = acc * rescale[:, None]
            acc = tl.dot(weights.to(q.dtype), v.to(tl.float32).to(q.dtype), acc, input_precision="ieee")
            highest = new_highest

        out = acc / tl.where(in_chunk, total, 1.0)[:, None]
        out_offsets = (row_offsets * num_heads + head) * head_dim + dims[None, :]
        tl.store(out_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=q_mask)


@triton.jit  # type: ignore[untyped-decorator]
def needed_blocks(  # type: ignore[no-untyped-def]
    key_norms_ptr, table_ptr, start, last, positions, in_chunk, q_norms, own, slope, scale, tolerance, left_out, head,
    num_heads, block_size: tl.constexpr, block_n: tl.constexpr, rounding: tl.constexpr,
):  # fmt: skip
    """Of the blocks of one step, as bits: those that each row needs, those that any does; and the mass left out by now.

    See naive/alibi_skip.py.
    """
    kept = tl.zeros(positions.shape, dtype=tl.int32)
    needed = 0
    for i in tl.static_range(block_n // block_size):
        begin = start + i * block_size
        block = tl.load(table_ptr + begin // block_size, mask=begin <= last, other=0).to(tl.int64)
        norm = tl.load(key_norms_ptr + block * num_heads + head, mask=begin <= last, other=0.0)
        nearest = positions - (begin + block_size - 1)
        bound = bound_of_block(q_norms, norm, own, slope, nearest.to(tl.float32), scale, block_size, rounding)
        candidate = (nearest >= 0) & (bound <= tolerance)
        left_out += tl.where(candidate, bound, 0.0)
        keep = in_chunk & (positions >= begin) & ((candidate & (left_out <= tolerance)) == 0)
        kept |= keep.to(tl.int32) << i
        needed |= tl.max(keep.to(tl.int32), axis=0) << i
    return kept, needed, left_out


@triton.jit  # type: ignore[untyped-decorator]
def rows_of_tile(tile, query_starts_ptr, num_seqs, block_m: tl.constexpr, max_seqs: tl.constexpr):  # type: ignore[no-untyped-def]
    """The tile's sequence, its first packed row and where the sequence's rows end.

    Sequence s owns the tiles from query_starts[s] // block_m + s on: as many as it can need, whatever the lengths, so
    that the grid follows from T and B alone. One too many has no rows.
    """
    seqs = tl.arange(0, max_seqs)
    starts = tl.load(query_starts_ptr + seqs, mask=seqs < num_seqs, other=0)
    first_tiles = starts // block_m + seqs
    seq = tl.sum(((first_tiles <= tile) & (seqs < num_seqs)).to(tl.int32), axis=0) - 1
    start = tl.load(query_starts_ptr + seq)
    first_row = start + (tile - (start // block_m + seq)) * block_m
    return seq.to(tl.int64), first_row, tl.load(query_starts_ptr + seq + 1)


def paged_prefill_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    slopes: Tensor,
    *,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    key_norms: Tensor | None = None,
    alibi_tolerance: float | None = None,
    blocks_read: Tensor | None = None,
    config: tuple[int, int, int, int] | None = None,
) -> Tensor:
    """See naive.paged_prefill_attention; both caches may be views, with the same strides.

    blocks_read: (N,) int32, to which the blocks that were loaded are added (only with key_norms). config: rows of
    a tile, keys of a step, warps, stages.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_seqs, block_size = len(context_lens), k_cache.shape[1]
    assert q.stride(-1) == k_cache.stride(-1) == block_tables.stride(-1) == 1
    assert k_cache.stride() == v_cache.stride()
    block_m, block_n, num_warps, num_stages = config or CONFIGS[q.dtype]
    assert key_norms is None or (key_norms.is_contiguous() and block_n % block_size == 0)
    tolerance = default_tolerance(q.dtype) if alibi_tolerance is None else alibi_tolerance
    out = torch.zeros(num_tokens, num_heads, head_dim, dtype=q.dtype, device=q.device)  # rows of padding stay 0
    num_tiles = num_tokens // block_m + num_seqs
    prefill_attention_kernel[(num_heads, num_tiles)](
        out,
        q,
        k_cache,
        v_cache,
        k_scales,
        v_scales,
        key_norms if tolerance > 0 else None,
        blocks_read,
        block_tables,
        query_starts,
        context_lens,
        slopes,
        head_dim**-0.5,
        tolerance,
        num_seqs,
        q.stride(0),
        q.stride(1),
        k_cache.stride(0),
        k_cache.stride(1),
        k_cache.stride(2),
        block_tables.stride(0),
        head_dim=head_dim,
        block_size=block_size,
        block_m=block_m,
        block_n=block_n,
        block_d=max(16, triton.next_power_of_2(head_dim)),
        max_seqs=triton.next_power_of_2(num_seqs),
        rounding=ROUNDING,
        log2_e=LOG2_E,
        num_warps=num_warps,
        num_stages=num_stages,
        **at_most(255),
    )
    return out
