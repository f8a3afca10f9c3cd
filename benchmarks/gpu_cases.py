"""The kernels on BLOOM's shapes, what each must move and compute, and who else can do the same.

B = sequences, L = context, T = packed tokens, N = heads, D = head dim, M = rows, K = inputs
"""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bloom import kernels
from bloom.alibi import slopes

Call = Callable[[], object]
BLOCK_SIZE = 16
SHAPES = {"560m": (16, 64), "3b": (32, 80), "7b1": (32, 128), "176b/4": (28, 128)}  # heads, head dim
HIDDEN = {"560m": 1024, "7b1": 4096, "176b": 14336}
VOCABULARY = 250_880


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """prepare: makes the inputs on the GPU; ours first, then whoever can do the same."""

    name: str
    num_bytes: int  # that must be moved
    flops: int
    prepare: Callable[[], Iterator[tuple[str, Call]]]


def peers_installed() -> list[str]:
    return [name for name in ("flash_attn", "vllm") if importlib.util.find_spec(name) is not None]


def cases() -> Iterator[Case]:
    for model, (num_heads, head_dim) in SHAPES.items():
        for num_seqs, length in ((1, 2048), (32, 2048), (8, 16384), (1, 65536)):
            for cached, size in (("bf16", 2), ("int8", 1), ("fp8", 1)):
                numbers = 2 * num_seqs * length * num_heads * head_dim
                yield Case(
                    name=f"decode {model} B={num_seqs} L={length} {cached}",
                    num_bytes=numbers * size + (0 if size == 2 else 2 * num_seqs * length * num_heads * 4),
                    flops=2 * numbers,
                    prepare=partial(decode, num_seqs, length, num_heads, head_dim, cached),
                )
        for length in (512, 2048, 8192):
            yield Case(
                name=f"prefill {model} L={length}",
                num_bytes=4 * length * num_heads * head_dim * 2,
                flops=2 * length * length * num_heads * head_dim,  # half of the square
                prepare=partial(prefill, length, num_heads, head_dim),
            )
    for model, hidden in HIDDEN.items():
        for rows in (1, 32, 2048):
            numbers = rows * hidden
            yield Case(
                name=f"layer_norm {model} T={rows}", num_bytes=4 * numbers, flops=8 * numbers,
                prepare=partial(norm, rows, hidden),
            )  # fmt: skip
            yield Case(
                name=f"add_layer_norm {model} T={rows}", num_bytes=8 * numbers, flops=9 * numbers,
                prepare=partial(add_norm, rows, hidden),
            )  # fmt: skip
            yield Case(
                name=f"bias_gelu {model} T={rows}", num_bytes=16 * numbers, flops=40 * numbers,
                prepare=partial(gelu, rows, 4 * hidden),
            )  # fmt: skip
            yield Case(
                name=f"linear {model} M={rows}", num_bytes=8 * hidden * hidden + 10 * numbers,
                flops=8 * rows * hidden * hidden, prepare=partial(product, rows, hidden, 4 * hidden),
            )  # fmt: skip
            if rows <= 64:
                yield Case(
                    name=f"int8_linear {model} M={rows}", num_bytes=4 * hidden * hidden + 10 * numbers,
                    flops=8 * rows * hidden * hidden, prepare=partial(int8_product, rows, hidden, 4 * hidden),
                )  # fmt: skip
    for rows in (1, 32, 256):
        yield Case(
            name=f"sample top-k top-p B={rows}", num_bytes=4 * rows * VOCABULARY, flops=4 * rows * VOCABULARY,
            prepare=partial(draw, rows),
        )  # fmt: skip


def _normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, dtype=dtype, device="cuda")


def _store(k: Tensor, v: Tensor, num_blocks: int, cached: str) -> dict[str, Any]:
    """The tokens (T, N, D) in a cache, whose blocks are in order."""
    dtype = {"bf16": torch.bfloat16, "int8": torch.int8, "fp8": torch.float8_e4m3fn}[cached]
    num_heads, head_dim = k.shape[1:]
    caches: dict[str, Any] = {
        name: torch.empty(num_blocks, BLOCK_SIZE, num_heads, head_dim, dtype=dtype, device="cuda")
        for name in ("k_cache", "v_cache")
    }
    beside: dict[str, Any] = {"key_norms": torch.empty(num_blocks, num_heads, device="cuda")}
    if cached != "bf16":
        for name in ("k_scales", "v_scales"):
            beside[name] = torch.empty(num_blocks, BLOCK_SIZE, num_heads, device="cuda")
    slots = torch.arange(len(k), device="cuda")
    kernels.store_kv(k, v, caches["k_cache"], caches["v_cache"], slots, **beside)
    return caches | beside


def decode(num_seqs: int, length: int, num_heads: int, head_dim: int, cached: str) -> Iterator[tuple[str, Call]]:
    q = _normal(num_seqs, num_heads, head_dim)
    k, v = (_normal(num_seqs * length, num_heads, head_dim) for _ in range(2))
    num_blocks = num_seqs * length // BLOCK_SIZE
    cache = _store(k, v, num_blocks, cached)
    tables = torch.arange(num_blocks, dtype=torch.int32, device="cuda").view(num_seqs, -1)
    lens = torch.full((num_seqs,), length, dtype=torch.int32, device="cuda")
    head_slopes = torch.tensor(slopes(num_heads), device="cuda")
    arguments: dict[str, Any] = {"block_tables": tables, "context_lens": lens, "slopes": head_slopes} | cache
    yield "ours, all blocks", lambda: kernels.paged_decode_attention(q, **arguments, alibi_tolerance=0.0)
    yield "ours, ALiBi skip", lambda: kernels.paged_decode_attention(q, **arguments)
    if cached != "bf16":
        return
    keys, values = (x.view(num_seqs, length, num_heads, head_dim).transpose(1, 2) for x in (k, v))
    distance = torch.arange(length, device="cuda") - (length - 1.0)
    bias = (head_slopes[:, None, None] * distance).to(q.dtype)
    yield "SDPA, contiguous", lambda: F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=bias)
    yield "FlexAttention, contiguous", _flex(q[:, :, None], keys, values, head_slopes, causal=False)
    if "flash_attn" in peers_installed():
        from flash_attn import flash_attn_with_kvcache  # type: ignore[import-not-found,unused-ignore]

        # Its pages are of 256 tokens: the same memory, cut otherwise.
        pages = [cache[name].view(-1, 256, num_heads, head_dim) for name in ("k_cache", "v_cache")]
        paged = torch.arange(len(pages[0]), dtype=torch.int32, device="cuda").view(num_seqs, -1)
        yield (
            "FlashAttention, pages of 256",
            lambda: flash_attn_with_kvcache(
                q[:, None], *pages, cache_seqlens=lens, block_table=paged, alibi_slopes=head_slopes
            ),
        )
    if "vllm" in peers_installed():
        yield "vLLM, Triton", _vllm(q, cache, tables, lens, head_slopes)


def _flex(q: Tensor, k: Tensor, v: Tensor, head_slopes: Tensor, *, causal: bool) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    offset = k.shape[2] - q.shape[2]

    def alibi(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return score + head_slopes[head] * (column - row - offset)

    mask = None
    if causal:
        mask = create_block_mask(lambda b, h, row, column: column <= row, None, None, q.shape[2], k.shape[2])
    compiled = torch.compile(flex_attention)
    return lambda: compiled(q, k, v, score_mod=alibi, block_mask=mask)


def _vllm(q: Tensor, cache: dict[str, Any], tables: Tensor, lens: Tensor, head_slopes: Tensor) -> Call:
    from vllm.attention.ops.triton_unified_attention import (  # type: ignore[import-not-found,unused-ignore]
        unified_attention,
    )

    out = torch.empty_like(q)
    starts = torch.arange(len(q) + 1, dtype=torch.int32, device="cuda")
    longest = tables.shape[1] * BLOCK_SIZE
    return lambda: unified_attention(
        q=q, k=cache["k_cache"], v=cache["v_cache"], out=out, cu_seqlens_q=starts, max_seqlen_q=1, seqused_k=lens,
        max_seqlen_k=longest, softmax_scale=q.shape[-1] ** -0.5, causal=True, window_size=(-1, -1),
        block_table=tables, softcap=0, q_descale=None, k_descale=None, v_descale=None, alibi_slopes=head_slopes,
    )  # fmt: skip


def prefill(length: int, num_heads: int, head_dim: int) -> Iterator[tuple[str, Call]]:
    q, k, v = (_normal(length, num_heads, head_dim) for _ in range(3))
    cache = _store(k, v, length // BLOCK_SIZE, "bf16")
    head_slopes = torch.tensor(slopes(num_heads), device="cuda")
    arguments = cache | {
        "block_tables": torch.arange(length // BLOCK_SIZE, dtype=torch.int32, device="cuda")[None],
        "query_starts": torch.tensor([0, length], dtype=torch.int32, device="cuda"),
        "context_lens": torch.tensor([length], dtype=torch.int32, device="cuda"),
        "slopes": head_slopes,
    }
    yield "ours, all blocks", lambda: kernels.paged_prefill_attention(q, **arguments, alibi_tolerance=0.0)
    yield "ours, ALiBi skip", lambda: kernels.paged_prefill_attention(q, **arguments)
    queries, keys, values = (x.transpose(0, 1)[None] for x in (q, k, v))
    ahead = torch.arange(length, device="cuda")[None] - torch.arange(length, device="cuda")[:, None]
    bias = (head_slopes[:, None, None] * ahead).masked_fill(ahead > 0, -torch.inf).to(q.dtype)
    yield "SDPA, contiguous", lambda: F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    yield "FlexAttention, contiguous", _flex(queries, keys, values, head_slopes, causal=True)
    if "flash_attn" in peers_installed():
        from flash_attn import flash_attn_func

        yield (
            "FlashAttention",
            lambda: flash_attn_func(q[None], k[None], v[None], causal=True, alibi_slopes=head_slopes),
        )


def norm(rows: int, hidden: int) -> Iterator[tuple[str, Call]]:
    x, weight, bias = _normal(rows, hidden), _normal(hidden), _normal(hidden)
    yield "ours", lambda: kernels.layer_norm(x, weight, bias, 1e-5)
    yield "torch", lambda: F.layer_norm(x, (hidden,), weight, bias)


def add_norm(rows: int, hidden: int) -> Iterator[tuple[str, Call]]:
    x, residual, weight, bias = _normal(rows, hidden), _normal(rows, hidden), _normal(hidden), _normal(hidden)
    yield "ours", lambda: kernels.add_layer_norm(x, residual, weight, bias, 1e-5)
    yield "torch, two steps", lambda: F.layer_norm(x + residual, (hidden,), weight, bias)


def gelu(rows: int, width: int) -> Iterator[tuple[str, Call]]:
    x, bias = _normal(rows, width), _normal(width)
    yield "ours", lambda: kernels.bias_gelu(x, bias)
    yield "torch, two steps", lambda: F.gelu(x + bias, approximate="tanh")


def product(rows: int, num_inputs: int, num_outputs: int) -> Iterator[tuple[str, Call]]:
    x, weight, bias = _normal(rows, num_inputs), _normal(num_outputs, num_inputs), _normal(num_outputs)
    yield "ours, batch-invariant", lambda: kernels.linear(x, weight, bias)
    yield "torch", lambda: F.linear(x, weight, bias)


def int8_product(rows: int, num_inputs: int, num_outputs: int) -> Iterator[tuple[str, Call]]:
    x, bias = _normal(rows, num_inputs), _normal(num_outputs)
    weight = torch.randint(-127, 128, (num_outputs, num_inputs), dtype=torch.int8, device="cuda")
    scales = torch.rand(num_outputs, device="cuda") / 127
    wide = weight.to(torch.bfloat16)
    yield "ours", lambda: kernels.int8_linear(x, weight, scales, bias)
    yield "torch, bf16 weights", lambda: F.linear(x, wide, bias)


def draw(rows: int) -> Iterator[tuple[str, Call]]:
    logits = _normal(rows, VOCABULARY, dtype=torch.float32) * 3
    numbers = torch.arange(rows, device="cuda")
    temperatures = torch.full((rows,), 0.8, device="cuda")
    filters: dict[str, Any] = {
        "top_ks": torch.full((rows,), 50, dtype=torch.int32, device="cuda"),
        "top_ps": torch.full((rows,), 0.9, device="cuda"),
    }
    yield "ours", lambda: kernels.sample(logits, numbers, numbers, temperatures, **filters)
    yield "torch, sorted", lambda: kernels.naive.sample(logits, numbers, numbers, temperatures, **filters)
