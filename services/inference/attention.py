"""Attention of one step over the paged cache: what `bloom.model` is given as `attend`.

T = packed tokens, B = decoding sequences, S = cached tokens of a sequence, N = heads, D = head dim
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bloom.kernels import paged_decode_attention
from services.inference.kv_cache import KVCache
from services.inference.step_batch import StepBatch

_MAX_BIAS_ELEMENTS = 1 << 24  # of one (N, rows, S) bias: longer chunks are attended to in parts


@dataclass(frozen=True, slots=True)
class _Prefill:
    """Rows `start:end` of the packed tokens: consecutive tokens of one sequence, the last of them its S-th."""

    start: int
    end: int
    block_table: Tensor  # (blocks,)
    num_context: int  # S
    bias: Tensor  # (N, end - start, S): ALiBi, and -inf on what lies ahead


class PagedAttention:
    """Built once per step, called once per layer. Single tokens go through the decode kernel together."""

    def __init__(self, cache: KVCache, slopes: Tensor, batch: StepBatch) -> None:
        self._cache = cache
        self._slopes = slopes  # (N,) fp32
        device = slopes.device
        self._slots = torch.from_numpy(batch.slots(cache.block_size)).to(device)
        self._context_lens = torch.from_numpy(batch.context_lens).to(device)
        self._block_tables = torch.from_numpy(batch.block_tables).to(device)
        self._num_decodes = batch.num_singles
        self._prefills: list[_Prefill] = []
        for row in range(self._num_decodes, len(batch.context_lens)):
            self._add_prefill(row, batch)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (T, N, D) of this step's tokens -> (T, N, D), over these and all cached before them."""
        self._cache.store(layer, self._slots, k, v)
        if not self._prefills:
            return self._decode(layer, q)
        out = torch.empty_like(q)
        if self._num_decodes:
            out[: self._num_decodes] = self._decode(layer, q[: self._num_decodes])
        for part in self._prefills:
            keys, values = self._cache.gather(layer, part.block_table, part.num_context)
            attended = functional.scaled_dot_product_attention(
                q[part.start : part.end].transpose(0, 1)[None],  # (1, N, rows, D)
                keys.transpose(0, 1)[None],
                values.transpose(0, 1)[None],
                attn_mask=part.bias[None],
            )
            out[part.start : part.end] = attended[0].transpose(0, 1)
        return out

    def _decode(self, layer: int, q: Tensor) -> Tensor:
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        tables, lens = self._block_tables[: self._num_decodes], self._context_lens[: self._num_decodes]
        return paged_decode_attention(q, keys, values, tables, lens, self._slopes)

    def _add_prefill(self, row: int, batch: StepBatch) -> None:
        """Split so that no bias exceeds its limit; the bias is shared by all layers."""
        start, end = (int(x) for x in batch.query_starts[row : row + 2])
        longest = int(batch.context_lens[row])
        num_heads = self._slopes.numel()
        while start < end:
            rows = min(end - start, max(1, _MAX_BIAS_ELEMENTS // (num_heads * longest)))
            num_context = longest - (end - start - rows)
            num_blocks = -(-num_context // self._cache.block_size)
            bias = causal_bias(self._slopes, rows, num_context)
            if bias.is_cuda:  # the CPU's attention takes an fp32 bias with any q
                bias = bias.to(self._cache.keys.dtype)
            table = self._block_tables[row, :num_blocks]
            self._prefills.append(_Prefill(start, start + rows, table, num_context, bias))
            start += rows


def causal_bias(slopes: Tensor, num_rows: int, num_context: int) -> Tensor:
    """ALiBi bias (N, num_rows, num_context) of the last `num_rows` of `num_context` tokens, fp32.

    A key `d` tokens back has -slope * d; one ahead has -inf. Source: Press et al. 2022, ALiBi.
    """
    keys = torch.arange(num_context, device=slopes.device)
    queries = torch.arange(num_context - num_rows, num_context, device=slopes.device)
    ahead = (keys[None] - queries[:, None]).float()  # (num_rows, num_context)
    bias = ahead.masked_fill(ahead > 0, -torch.inf)
    return slopes[:, None, None] * bias
