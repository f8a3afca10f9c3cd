"""The KV store in Triton's interpreter; test_interpreted.py runs this file with TRITON_INTERPRET=1.

T = tokens, N = heads, D = head dim
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bloom.kernels import kv_store, naive
from tests.support.paged_attention import norms_of
from tests.support.triton_interpreter import correct_the_interpreter, mutated

correct_the_interpreter()
NUM_BLOCKS, BLOCK_SIZE, N, D = 6, 16, 3, 80
CACHES = [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn]
Store = Callable[..., None]


class Cache:
    """Filled with NaN, or a number where there is none."""

    def __init__(self, dtype: torch.dtype) -> None:
        shape = (NUM_BLOCKS, BLOCK_SIZE, N, D)
        self.dtype = dtype
        self.k, self.v = (
            torch.full(shape, 77, dtype=dtype) if dtype == torch.int8 else torch.full(shape, torch.nan).to(dtype)
            for _ in range(2)
        )
        quantized = dtype in (torch.int8, torch.float8_e4m3fn)
        self.scales = [torch.full(shape[:3], torch.nan) for _ in range(2)] if quantized else [None, None]
        self.norms = torch.full((NUM_BLOCKS, N), torch.nan)

    def store(self, store: Store, k: Tensor, v: Tensor, slots: list[int]) -> None:
        k_scales, v_scales = self.scales
        store(k, v, self.k, self.v, torch.tensor(slots), k_scales=k_scales, v_scales=v_scales, key_norms=self.norms)

    def tensors(self) -> list[Tensor]:
        return [x.float() for x in (self.k, self.v, *self.scales, self.norms) if x is not None]


def keys_and_values(num: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """Slices of a fused (T, N, 3, D), as the model makes them."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(num, N, 3, D, generator=generator).to(dtype) * torch.tensor([0.1, 5.0, 1.0])[:, None, None].to(
        dtype
    )
    return qkv[:, :, 1], qkv[:, :, 2]


def fill(store: Store, dtype: torch.dtype) -> Cache:
    """A chunk over three blocks, decodes that go on with them, padding, and a block used again."""
    cache = Cache(dtype)
    computed = dtype if dtype.is_floating_point and dtype.itemsize > 1 else torch.bfloat16
    k, v = keys_and_values(45, computed, 0)
    slots = [*range(32, 48), *range(16), *range(80, 90), *range(48, 51)]
    cache.store(store, k, v, slots)
    k, v = keys_and_values(4, computed, 1)
    cache.store(store, k * 0.1, v, [90, -1, 51, -1])  # smaller: the norms of before remain
    k, v = keys_and_values(2, computed, 2)
    cache.store(store, k * 0.1, v, [32, 33])  # the block begins anew: they do not
    return cache


@pytest.mark.parametrize("dtype", CACHES, ids=str)
def test_the_kernel_stores_what_its_twin_stores(dtype: torch.dtype):
    kernel, twin = fill(kv_store.store_kv, dtype), fill(naive.store_kv, dtype)
    for got, expected in zip(kernel.tensors(), twin.tensors(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", CACHES, ids=str)
@pytest.mark.parametrize("store", [kv_store.store_kv, naive.store_kv])
def test_norms_bound_what_is_stored(store: Store, dtype: torch.dtype):
    cache = fill(store, dtype)
    actual = norms_of(cache.k, cache.scales[0])
    for block in (0, 5, 3):  # written once, or gone on with
        torch.testing.assert_close(cache.norms[block], actual[block], rtol=2e-6, atol=0)
    assert (cache.norms[2] < 0.2 * actual[2]).all()  # begun anew; what stands behind belongs to no one
    assert cache.norms[[1, 4]].isnan().all()


MUTATIONS = {
    "values where keys belong": ("tl.load(v_ptr + v_source", "tl.load(k_ptr + k_source"),
    "norms are never reset": ("if slot % block_size != 0:", "if slot >= 0:"),
    "norms are always reset": ("if slot % block_size != 0:", "if slot < 0:"),
    "norm without the scale": ("axis=1)) * scale", "axis=1)) * 1.0"),
    "only the first token is stored": ("(slots // block_size == block)", "(slots == slot)"),
    "rounds towards 0": ("scaled = (scaled + 12582912.0) - 12582912.0", "scaled = scaled"),
    "scale of the next head": (
        "scales = slots * num_heads + head",
        "scales = slots * num_heads + (head + 1) % num_heads",
    ),
    "padding is stored": (
        "is_first = (slot >= 0) &",
        "slot = tl.maximum(slot, 0)\n    block = slot // block_size\n    is_first =",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_mistake_is_seen(tmp_path: Path, name: str):
    wrong = fill(mutated(kv_store, tmp_path, *MUTATIONS[name]).store_kv, torch.int8)
    right = fill(naive.store_kv, torch.int8)
    pairs = zip(wrong.tensors(), right.tensors(), strict=True)
    assert not all(torch.allclose(got, expected, rtol=1e-6, atol=0, equal_nan=True) for got, expected in pairs)
