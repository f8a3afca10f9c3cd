"""Attention of one step over the paged cache: what `bloom.model` is given as `attend`.

T = packed tokens, B = decoding sequences, S = cached tokens of a sequence, N = heads, D = head dim
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bloom.kernels import paged_decode_attention
from services.inference.kv_cache import KVCache
from services.inference.scheduler import Chunk

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
    """Built once per step, called once per layer.

    `chunks` are packed in order, single tokens first; these go through the decode kernel together.
    """

    def __init__(self, cache: KVCache, slopes: Tensor, chunks: list[Chunk]) -> None:
        self._cache = cache
        self._slopes = slopes  # (N,) fp32
        device = slopes.device
        self._slots = torch.from_numpy(_slots(chunks, cache.block_size)).to(device)
        decodes = [seq for seq, num_tokens in chunks if num_tokens == 1]
        self._num_decodes = len(decodes)
        if decodes:
            lens = np.array([seq.num_computed + 1 for seq in decodes], dtype=np.int32)
            num_blocks = -(-int(lens.max()) // cache.block_size)
            tables = np.zeros((len(decodes), num_blocks), dtype=np.int32)
            for row, seq in enumerate(decodes):
                table = np.frombuffer(seq.block_table, dtype=np.int32)[:num_blocks]
                tables[row, : len(table)] = table
            self._context_lens = torch.from_numpy(lens).to(device)
            self._block_tables = torch.from_numpy(tables).to(device)
        self._prefills: list[_Prefill] = []
        start = self._num_decodes
        for chunk in chunks[self._num_decodes :]:
            self._add_prefill(chunk, start)
            start += chunk.num_tokens

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
        return paged_decode_attention(q, keys, values, self._block_tables, self._context_lens, self._slopes)

    def _add_prefill(self, chunk: Chunk, start: int) -> None:
        """Split so that no bias exceeds its limit; the bias is shared by all layers."""
        seq, num_tokens = chunk
        num_heads = self._slopes.numel()
        done = 0
        while done < num_tokens:
            longest = seq.num_computed + num_tokens
            rows = min(num_tokens - done, max(1, _MAX_BIAS_ELEMENTS // (num_heads * longest)))
            num_context = seq.num_computed + done + rows
            num_blocks = -(-num_context // self._cache.block_size)
            table = torch.from_numpy(np.frombuffer(seq.block_table, dtype=np.int32)[:num_blocks].copy())
            bias = causal_bias(self._slopes, rows, num_context)
            if bias.is_cuda:  # the CPU's attention takes an fp32 bias with any q
                bias = bias.to(self._cache.keys.dtype)
            first = start + done
            self._prefills.append(_Prefill(first, first + rows, table.to(bias.device), num_context, bias))
            done += rows


def causal_bias(slopes: Tensor, num_rows: int, num_context: int) -> Tensor:
    """ALiBi bias (N, num_rows, num_context) of the last `num_rows` of `num_context` tokens, fp32.

    A key `d` tokens back has -slope * d; one ahead has -inf. Source: Press et al. 2022, ALiBi.
    """
    keys = torch.arange(num_context, device=slopes.device)
    queries = torch.arange(num_context - num_rows, num_context, device=slopes.device)
    ahead = (keys[None] - queries[:, None]).float()  # (num_rows, num_context)
    bias = ahead.masked_fill(ahead > 0, -torch.inf)
    return slopes[:, None, None] * bias


def _slots(chunks: list[Chunk], block_size: int) -> NDArray[np.int64]:
    """The flat cache slot of every packed token."""
    parts = []
    for seq, num_tokens in chunks:
        positions = np.arange(seq.num_computed, seq.num_computed + num_tokens)
        table = np.frombuffer(seq.block_table, dtype=np.int32).astype(np.int64)
        parts.append(table[positions // block_size] * block_size + positions % block_size)
    return np.concatenate(parts)
