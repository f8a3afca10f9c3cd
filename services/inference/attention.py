"""Attention of one step over the paged cache: what `bloom.model` is given as `attend`.

T = packed tokens, S = sequences, N = heads, D = head dim
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bloom.kernels import paged_decode_attention, paged_prefill_attention
from services.inference.kv_cache import KVCache
from services.inference.step_batch import StepBatch

_MAX_GATHERED = 1 << 25  # numbers of the keys that plain torch attends to at once


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepTensors:
    """A StepBatch on the device. Rows that only pad have a negative slot and a context of 0."""

    slots: Tensor  # (T,) int64
    query_starts: Tensor  # (S + 1,) int32
    context_lens: Tensor  # (S,) int32
    block_tables: Tensor  # (S, max_blocks) int32
    num_singles: int  # the first sequences have one token each

    @classmethod
    def of(cls, batch: StepBatch, block_size: int, device: torch.device) -> "StepTensors":
        return cls(
            slots=torch.from_numpy(batch.slots(block_size)).to(device),
            query_starts=torch.from_numpy(batch.query_starts).to(device),
            context_lens=torch.from_numpy(batch.context_lens).to(device),
            block_tables=torch.from_numpy(batch.block_tables).to(device),
            num_singles=batch.num_singles,
        )


class PagedAttention:
    """Built once per step, called once per layer: single tokens through the decode kernel, the rest as prefill.

    slopes: (N,) fp32, of this rank's heads. alibi_tolerance: see bloom.kernels; None is its default.
    batch_invariant: single tokens go as prefill, too. Whether a token of a prompt is one, and whether what was decoded
    is prefilled again, is up to the neighbours; and two kernels round differently.
    """

    def __init__(
        self,
        cache: KVCache,
        slopes: Tensor,
        step: StepTensors,
        *,
        alibi_tolerance: float | None = None,
        batch_invariant: bool = False,
    ) -> None:
        if batch_invariant:  # rows that only pad need a key to see
            step = replace(step, num_singles=0, context_lens=step.context_lens.clamp(min=1))
        self._cache = cache
        self._slopes = slopes
        self._step = step
        self._alibi_tolerance = alibi_tolerance
        self._groups = _groups(step, len(slopes) * cache.head_dim)
        if step.num_singles < len(step.context_lens):
            self._starts = step.query_starts[step.num_singles :] - step.num_singles  # of what is prefilled

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v (T, N, D) of this step's tokens -> (T, N, D), over these and all cached before them."""
        self._cache.store(layer, self._step.slots, k, v)
        num_singles = self._step.num_singles
        if num_singles == len(q):
            return self._decode(layer, q)
        if num_singles == 0:
            return self._prefill(layer, q)
        return torch.cat([self._decode(layer, q[:num_singles]), self._prefill(layer, q[num_singles:])])

    def _decode(self, layer: int, q: Tensor) -> Tensor:
        step, cached = self._step, self._cache.layer(layer)
        parts = [
            paged_decode_attention(
                q[rows],
                cached.keys,
                cached.values,
                step.block_tables[rows],
                step.context_lens[rows],
                self._slopes,
                k_scales=cached.key_scales,
                v_scales=cached.value_scales,
                key_norms=cached.key_norms,
                alibi_tolerance=self._alibi_tolerance,
            )
            for rows in self._groups
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _prefill(self, layer: int, q: Tensor) -> Tensor:
        step, cached = self._step, self._cache.layer(layer)
        return paged_prefill_attention(
            q,
            cached.keys,
            cached.values,
            step.block_tables[step.num_singles :],
            self._starts,
            step.context_lens[step.num_singles :],
            self._slopes,
            k_scales=cached.key_scales,
            v_scales=cached.value_scales,
            key_norms=cached.key_norms,
            alibi_tolerance=self._alibi_tolerance,
        )


def _groups(step: StepTensors, row_size: int) -> list[slice]:
    """Single tokens that are attended to at once. Torch gathers what they see, padded to the longest: not too much."""
    if step.num_singles == 0 or step.context_lens.is_cuda:
        return [slice(0, step.num_singles)]
    longest = max(int(step.context_lens[: step.num_singles].max()), 1)
    size = max(1, _MAX_GATHERED // (longest * row_size))
    return [slice(start, min(start + size, step.num_singles)) for start in range(0, step.num_singles, size)]
