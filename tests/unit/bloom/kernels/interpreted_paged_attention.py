"""The Triton kernel in Triton's interpreter; test_paged_attention.py runs this file with TRITON_INTERPRET=1.

It must be set before triton is imported, hence a process of its own (and a name that pytest does not collect).
"""

import dataclasses
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import triton
from torch import Tensor

from bloom.kernels import decode_attention, naive
from tests.support.paged_attention import CASES, TOLERANCE, PagedCase, error

Kernel = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def fresh_memory_holds_nan() -> Iterator[None]:
    """In deterministic mode torch fills what it allocates: an output that is not written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def test_this_process_interprets():
    assert triton.knobs.runtime.interpret


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernel_equals_its_twin_and_the_definition(case: PagedCase, dtype: torch.dtype):
    inputs = dataclasses.replace(case, dtype=dtype).inputs()
    out = decode_attention.paged_decode_attention(*inputs)
    assert out.dtype == dtype
    assert error(out, inputs) < TOLERANCE[dtype]
    torch.testing.assert_close(out, naive.paged_decode_attention(*inputs), rtol=0, atol=2 * TOLERANCE[dtype])


def test_caches_may_be_views_of_one_tensor():
    """As the engine lays them out: (2, num_blocks, ...) of several layers, and q a slice of the fused qkv."""
    q, k_cache, v_cache, tables, lens, slopes = PagedCase(n_head=3, head_dim=20, context_lens=(30, 9)).inputs()
    both = torch.stack([k_cache, v_cache], dim=2)  # (num_blocks, block_size, 2, N, D)
    qkv = torch.stack([q, q * 0, q * 0], dim=2)  # (B, N, 3, D)
    out = decode_attention.paged_decode_attention(qkv[:, :, 0], both[:, :, 0], both[:, :, 1], tables, lens, slopes)
    torch.testing.assert_close(out, naive.paged_decode_attention(q, k_cache, v_cache, tables, lens, slopes))


def test_table_entries_past_the_context_are_not_read():
    q, k_cache, v_cache, tables, lens, slopes = PagedCase(n_head=2, head_dim=16, context_lens=(40, 9)).inputs()
    tables[0, 3:] = tables[1, 1:] = 2**30  # no cache has this block
    inputs = (q, k_cache, v_cache, tables, lens, slopes)
    assert error(decode_attention.paged_decode_attention(*inputs), inputs) < TOLERANCE[torch.float32]


def test_large_scores_do_not_overflow():
    q, *rest = PagedCase(n_head=2, head_dim=64, context_lens=(130, 64)).inputs()
    inputs = (q * 1000, *rest)
    assert error(decode_attention.paged_decode_attention(*inputs), inputs) < 1e-3


def error_past_2_31_numbers(kernel: Kernel, folder: Path) -> float:
    """Of a context in the last block of a cache of more than 2^31 numbers: a sparse file, of which little is ever real.

    As much again lies before the cache, so that a wrapped address reads zeros there and not foreign memory.
    """
    block = 16 * 64
    memory = torch.from_file(str(folder / "cache"), shared=True, size=2**32 + block, dtype=torch.float16)
    cache = memory[2**31 :].view(-1, 16, 1, 64)
    case = PagedCase(n_head=1, head_dim=64, context_lens=(16,), dtype=torch.float16)
    q, k_cache, _, tables, lens, slopes = case.inputs()
    cache[-1] = k_cache[tables[0, 0]]
    inputs = (q, cache, cache, torch.full_like(tables, len(cache) - 1), lens, slopes)
    return error(kernel(*inputs), inputs)


def test_addresses_past_2_31_numbers(tmp_path: Path):
    assert error_past_2_31_numbers(decode_attention.paged_decode_attention, tmp_path) < TOLERANCE[torch.float16]


# Each mistake must be seen by the comparison above, on at least one of its cases.
MUTATIONS = {
    "slope of the next head": ("slopes_ptr + head)", "slopes_ptr + (head + 1) % tl.num_programs(1))"),
    "no slope": ("slope * (keys - (context_len - 1))", "0.0 * (keys - (context_len - 1))"),
    "slope of the wrong sign": ("+ slope *", "- slope *"),
    "mask lets a slot too many in": ("valid = keys < context_len", "valid = keys < context_len + 1"),
    "mask leaves the new token out": ("valid = keys < context_len", "valid = (keys < context_len - 1) | (keys == 0)"),
    "masked keys keep their weight": ('tl.where(valid, scores, float("-inf"))', "scores"),
    "not scaled": (".to(tl.float32) * scale", ".to(tl.float32)"),
    "accumulator not rescaled": ("acc = acc * rescale", "acc = acc"),
    "total not rescaled": ("total = total * rescale", "total = total"),
    "last step dropped": ("tl.range(0, context_len, block_l)", "tl.range(0, context_len - block_l + 1, block_l)"),
    "block table ignored": ("blocks.to(tl.int64)", "(keys // block_size).to(tl.int64)"),
    "values of head 0": ("v_ptr + offsets", "v_ptr + offsets - head * stride_head"),
}


def mutated(tmp_path: Path, right: str, wrong: str) -> Kernel:
    source = inspect.getsource(decode_attention)
    assert source.count(right) == 1, f"{right!r} is no longer in the kernel once; adapt the mutation"
    path = tmp_path / "mutated_paged_attention.py"
    path.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location("mutated_paged_attention", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.paged_decode_attention


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_mistake_is_seen(tmp_path: Path, name: str):
    kernel = mutated(tmp_path, *MUTATIONS[name])
    tolerance = TOLERANCE[torch.float32]
    assert any(not error(kernel(*inputs), inputs) < tolerance for inputs in (case.inputs() for case in CASES[1:6]))


def test_addresses_of_32_bits_are_seen(tmp_path: Path):
    right, wrong = "blocks.to(tl.int64) * stride_block", "(blocks * stride_block.to(tl.int32)).to(tl.int64)"
    assert error_past_2_31_numbers(mutated(tmp_path, right, wrong), tmp_path) > 0.1
