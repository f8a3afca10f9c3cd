"""Inputs for paged decode attention whose unused memory is poisoned, and the definition to compare with.

B = sequences, N = heads, D = head dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bloom.alibi import slopes
from bloom.kernels.naive.kv_cache import quantize

# Rounding of the result to its dtype, and of the few fp32 operations before it.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


@dataclass(frozen=True, kw_only=True)
class PagedCase:
    """context_lens decides the rest: blocks are dealt out in random order, free ones and free slots hold NaN."""

    n_head: int
    head_dim: int
    context_lens: tuple[int, ...]
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def inputs(self, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """q, k_cache, v_cache, block_tables, context_lens, slopes."""
        generator = torch.Generator().manual_seed(self.seed)
        needed = [-(-length // self.block_size) for length in self.context_lens]
        order = torch.randperm(sum(needed) + 3, generator=generator)
        tables = torch.full((len(needed), max(needed) + 2), int(order[-1]), dtype=torch.int32)  # a free block
        shape = (len(order), self.block_size, self.n_head, self.head_dim)
        caches = torch.full((2, *shape), float("nan"))
        for row, (length, count) in enumerate(zip(self.context_lens, needed, strict=True)):
            blocks, order = order[:count], order[count:]
            tables[row, :count] = blocks
            for i in range(length):
                slot = caches[:, blocks[i // self.block_size], i % self.block_size]
                slot.copy_(torch.randn(slot.shape, generator=generator))
        q = torch.randn(len(needed), self.n_head, self.head_dim, generator=generator)
        k_cache, v_cache = caches.to(device, self.dtype)
        lens = torch.tensor(self.context_lens, dtype=torch.int32)
        head_slopes = torch.tensor(slopes(self.n_head), dtype=torch.float32)
        return (
            q.to(device, self.dtype), k_cache, v_cache, tables.to(device), lens.to(device), head_slopes.to(device)
        )  # fmt: skip


def by_definition(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, context_lens: Tensor, head_slopes: Tensor
) -> Tensor:
    """(B, N, D) in fp64, a sequence at a time."""
    out = torch.empty(q.shape, dtype=torch.float64)
    for row, length in enumerate(context_lens.tolist()):
        positions = range(length)
        block_size = k_cache.shape[1]
        k, v = (
            torch.stack([cache[int(block_tables[row, i // block_size]), i % block_size] for i in positions]).double()
            for cache in (k_cache, v_cache)
        )  # each (length, N, D)
        distance = torch.arange(length, dtype=torch.float64) - (length - 1)
        scores = torch.einsum("nd,lnd->nl", q[row].double().cpu(), k.cpu()) / q.shape[-1] ** 0.5
        weights = torch.softmax(scores + head_slopes.double().cpu()[:, None] * distance, dim=-1)
        out[row] = torch.einsum("nl,lnd->nd", weights, v.cpu())
    return out


def error(out: Tensor, inputs: tuple[Tensor, ...]) -> float:
    """Largest distance from the definition; NaN where anything is NaN."""
    return (out.double().cpu() - by_definition(*inputs)).abs().max().item()


CASES = [
    PagedCase(n_head=4, head_dim=64, context_lens=(1,)),
    PagedCase(n_head=3, head_dim=80, context_lens=(1, 16, 17, 63)),
    PagedCase(n_head=6, head_dim=96, context_lens=(64, 65)),
    PagedCase(n_head=2, head_dim=128, context_lens=(200, 3, 128)),
    PagedCase(n_head=5, head_dim=32, context_lens=(70, 5), block_size=8),
    PagedCase(n_head=7, head_dim=10, context_lens=(33, 129), block_size=5),
    PagedCase(n_head=1, head_dim=1, context_lens=(40,), block_size=1),
]


@dataclass(frozen=True, kw_only=True)
class PrefillCase:
    """chunks: (new tokens, tokens with these) of each sequence. The cache is as PagedCase makes it, then quantized."""

    n_head: int
    head_dim: int
    chunks: tuple[tuple[int, int], ...]
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype | None = None
    key_scale: float = 1.0

    def inputs(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """q, k_cache, v_cache, block_tables, query_starts, context_lens, slopes; and k_scales, v_scales, key_norms."""
        lens = tuple(context for _, context in self.chunks)
        case = PagedCase(n_head=self.n_head, head_dim=self.head_dim, context_lens=lens)
        _, k_cache, v_cache, tables, context_lens, head_slopes = case.inputs()
        k_cache, v_cache = (k_cache * self.key_scale).to(self.dtype), v_cache.to(self.dtype)
        num_new = [new for new, _ in self.chunks]
        generator = torch.Generator().manual_seed(1)
        q = torch.randn(sum(num_new), self.n_head, self.head_dim, generator=generator).to(self.dtype)
        starts = torch.tensor([0, *num_new], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        beside = {}
        if self.cache_dtype is not None:
            (k_cache, beside["k_scales"]), (v_cache, beside["v_scales"]) = (
                quantize(cache, self.cache_dtype) for cache in (k_cache, v_cache)
            )
        beside["key_norms"] = norms_of(k_cache, beside.get("k_scales"))
        return (q, k_cache, v_cache, tables, starts, context_lens, head_slopes), beside


def norms_of(k_cache: Tensor, k_scales: Tensor | None) -> Tensor:
    """(num_blocks, N): the largest norm of what was written; of no key NaN."""
    norms = read_back(k_cache, k_scales).norm(dim=-1)  # (num_blocks, block_size, N)
    return norms.nan_to_num(nan=-1.0).amax(dim=1).where(~norms.isnan().all(dim=1), torch.nan)


def read_back(cache: Tensor, scales: Tensor | None) -> Tensor:
    return cache.float() if scales is None else cache.float() * scales[..., None]


def prefill_by_definition(inputs: tuple[Tensor, ...], beside: dict[str, Tensor]) -> Tensor:
    """(T, N, D) in fp64: each token as a decode of its own."""
    q, k_cache, v_cache, tables, starts, lens, head_slopes = inputs
    caches = read_back(k_cache, beside.get("k_scales")), read_back(v_cache, beside.get("v_scales"))
    out = []
    for row, length in enumerate(lens.tolist()):
        rows = range(int(starts[row]), int(starts[row + 1]))
        context_lens = torch.tensor([length - len(rows) + 1 + i for i in range(len(rows))], dtype=torch.int32)
        table = tables[row : row + 1].expand(len(rows), -1)
        if rows:
            out.append(by_definition(q[rows.start : rows.stop], *caches, table, context_lens, head_slopes))
    return torch.cat(out)


# Odd shapes: sequences of one token, of none, chunks that end in mid-block, longer than a tile, heads of 3 and 14.
PREFILL_CASES = [
    PrefillCase(n_head=3, head_dim=64, chunks=((70, 70), (1, 33), (0, 20), (20, 90))),
    PrefillCase(n_head=14, head_dim=80, chunks=((5, 21),)),
    PrefillCase(n_head=2, head_dim=96, chunks=((17, 17), (130, 150))),
    PrefillCase(n_head=1, head_dim=128, chunks=((16, 128),)),
    PrefillCase(n_head=2, head_dim=20, chunks=((3, 40), (64, 64))),
]
