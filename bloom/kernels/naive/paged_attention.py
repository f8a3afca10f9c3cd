"""Attention over the paged cache with ALiBi: one new token per sequence (decode), or several (prefill).

B = sequences, T = packed new tokens, N = heads, D = head dim, L = longest context.
Source: Kwon et al. 2023, PagedAttention; Press et al. 2022, ALiBi.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .alibi_skip import default_tolerance, kept_blocks
from .kv_cache import read_slots


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
) -> Tensor:
    """Attention of one new token per sequence over its cached context, with ALiBi; (B, N, D) in q's dtype.

    q: (B, N, D), not scaled. k_cache, v_cache: (num_blocks, block_size, N, D), the new token's own key and value
    included; k_scales, v_scales: (num_blocks, block_size, N) fp32 of a quantized cache. block_tables: (B, max_blocks)
    int32; entries past a sequence's context are not read as blocks. context_lens: (B,) int32; the result of a row of 0
    is 0. slopes: (N,) fp32. max_context_len: no context is longer; by default what the tables can hold.

    The weight of key j is softmax_j(q·k_j / sqrt(D) + slope * (j - last)), in fp32. Unused slots of the
    cache may hold anything, NaN included.
    key_norms: (num_blocks, N) fp32 of store_kv; with it, blocks that could together add at most the share
    alibi_tolerance are left out (alibi_skip; by default what rounding the output hides; 0: none).
    """
    num_heads, block_size = q.shape[1], k_cache.shape[1]
    longest = max(int(context_lens.max()), 1)
    position = torch.arange(longest, device=q.device)  # (L,)
    tables = block_tables[:, position // block_size].long()  # (B, L)
    valid = position < context_lens[:, None]  # (B, L)
    slots = torch.where(valid, tables * block_size + position % block_size, 0)
    slots = torch.where(valid, slots, slots[:, :1])  # a masked key reads the first slot: never unused memory
    rows = (read_slots(*cache, slots.flatten()) for cache in ((k_cache, k_scales), (v_cache, v_scales)))
    k, v = (x.view(*slots.shape, *x.shape[1:]).transpose(1, 2).float() for x in rows)  # each (B, N, L, D)
    distance = (position - (context_lens[:, None] - 1)).float()  # (B, L), at most 0 where valid
    bias = (slopes[:, None] * distance[:, None]).masked_fill(~valid[:, None], float("-inf"))  # (B, N, L)
    if key_norms is not None:
        last = (context_lens - 1).clamp(min=0).long()
        own = k.gather(2, last[:, None, None, None].expand(-1, num_heads, 1, k.shape[-1])).squeeze(2)
        kept = kept_blocks(
            q,
            own,
            key_norms[tables[:, ::block_size].clamp(0, len(key_norms) - 1)].transpose(1, 2),
            last,
            slopes,
            block_size=block_size,
            tolerance=default_tolerance(q.dtype) if alibi_tolerance is None else alibi_tolerance,
        )
        bias.masked_fill_(~kept.repeat_interleave(block_size, dim=2)[..., :longest], float("-inf"))
    # In fp32 throughout: on the CPU that is faster than bf16 for a single query row, which no bf16 GEMM is made for.
    out = F.scaled_dot_product_attention(q.float()[:, :, None], k, v, attn_mask=bias[:, :, None]).squeeze(2)
    return out.masked_fill((context_lens == 0)[:, None, None], 0.0).to(q.dtype)


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
) -> Tensor:
    """Causal attention of each sequence's last tokens over its cached context, with ALiBi; (T, N, D) in q's dtype.

    q: (T, N, D), packed: rows query_starts[i] to query_starts[i + 1] are the last of the context_lens[i] tokens of
    sequence i, whose keys and values are all in the cache. query_starts: (B + 1,) int32. Rows after the last start are
    padding; theirs is 0. The rest as in paged_decode_attention, with each row's own position in place of the last.
    """
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    starts, lens, block_size = query_starts.tolist(), context_lens.tolist(), k_cache.shape[1]
    tolerance = default_tolerance(q.dtype) if alibi_tolerance is None else alibi_tolerance
    for row, (start, end, length) in enumerate(zip(starts[:-1], starts[1:], lens, strict=True)):
        if start == end:
            continue
        table = block_tables[row, : -(-length // block_size)].long()
        slots = (table[:, None] * block_size + torch.arange(block_size, device=q.device)).flatten()[:length]
        k, v = read_slots(k_cache, k_scales, slots), read_slots(v_cache, v_scales, slots)  # each (L, N, D)
        queries = q[start:end].to(k.dtype).flip(0)
        bias = reversed_alibi(slopes, end - start, length)
        if key_norms is not None:
            positions = torch.arange(length - 1, length - 1 - len(queries), -1, device=q.device)
            norms = key_norms[table].T.expand(len(queries), -1, -1)
            kept = kept_blocks(
                queries, k[positions], norms, positions, slopes, block_size=block_size, tolerance=tolerance
            )  # (rows, N, blocks)
            skipped = ~kept.transpose(0, 1).repeat_interleave(block_size, dim=2)[..., :length]
            bias = bias.masked_fill(skipped, float("-inf"))
        if bias.is_cuda:  # the CPU's attention takes an fp32 bias with any q
            bias = bias.to(k.dtype)
        attended = F.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],  # (1, N, rows, D)
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            attn_mask=bias[None],
        )
        out[start:end] = attended[0].transpose(0, 1).flip(0)
    return out


def reversed_alibi(slopes: Tensor, num_rows: int, num_context: int) -> Tensor:
    """ALiBi bias (N, num_rows, num_context) of the last `num_rows` of `num_context` tokens, the last one first.

    A key d tokens back has -slope * d; one ahead has -inf. In this order of rows the bias is a function of row + key: a
    view of N * (num_rows + num_context) numbers.
    """
    ahead = torch.arange(num_rows + num_context - 1, device=slopes.device).float() - (num_context - 1)
    of_sum = slopes[:, None] * ahead.masked_fill(ahead > 0, float("-inf"))
    return of_sum.as_strided((len(slopes), num_rows, num_context), (of_sum.stride(0), 1, 1))
