"""Paged decode attention in Triton's interpreter; test_interpreted.py runs this file with TRITON_INTERPRET=1."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import triton
from torch import Tensor

from bloom.kernels import decode_attention, naive
from tests.support.paged_attention import CASES, TOLERANCE, PagedCase, PrefillCase, error, prefill_by_definition
from tests.support.triton_interpreter import correct_the_interpreter, fresh_memory_holds_nan, mutated

correct_the_interpreter()
Kernel = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    with fresh_memory_holds_nan():
        yield


def test_this_process_interprets():
    assert triton.knobs.runtime.interpret


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernel_equals_its_twin_and_the_definition(case: PagedCase, dtype: torch.dtype):
    inputs = dataclasses.replace(case, dtype=dtype).inputs()
    for split_keys in (256, 32):
        out = decode_attention.paged_decode_attention(*inputs, split_keys=split_keys)
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
    "slope of the next head": ("slopes_ptr + head)", "slopes_ptr + (head + 1) % tl.num_programs(0))"),
    "no slope": ("slope * (keys - (context_len - 1))", "0.0 * (keys - (context_len - 1))"),
    "slope of the wrong sign": ("scores += slope", "scores -= slope"),
    "mask lets a slot too many in": ("first + split_keys, context_len)", "first + split_keys, context_len + 1)"),
    "mask leaves the new token out": ("(keys < last) &", "((keys < context_len - 1) | (keys == 0)) & (keys < last) &"),
    "masked keys keep their weight": ('tl.where(valid, scores, float("-inf"))', "scores"),
    "not scaled": (".to(tl.float32) * scale", ".to(tl.float32)"),
    "accumulator not rescaled": ("acc = acc * rescale", "acc = acc"),
    "total not rescaled": ("total = total * rescale", "total = total"),
    "last step dropped": ("tl.range(first, last, block_l)", "tl.range(first, last - block_l + 1, block_l)"),
    "block table ignored": ("blocks.to(tl.int64), (keys", "(keys // block_size).to(tl.int64), (keys"),
    "values of head 0": ("v_ptr + offsets", "v_ptr + offsets - head * stride_head"),
    "splits overlap": ("first = split * split_keys", "first = tl.maximum(split * split_keys - 1, 0)"),
    "splits weigh the same": ("tl.exp(masses - highest)", "tl.where(masses > float('-inf'), 1.0, 0.0)"),
    "last split not added": ("num_needed = tl.cdiv(tl.load(context_lens_ptr + tl.program_id(1)), split_keys)",
                             "num_needed = tl.cdiv(tl.load(context_lens_ptr + tl.program_id(1)), split_keys) - 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_mistake_is_seen(tmp_path: Path, name: str):
    kernel = mutated(decode_attention, tmp_path, *MUTATIONS[name]).paged_decode_attention
    tolerance = TOLERANCE[torch.float32]
    cases = (case.inputs() for case in CASES[1:4])
    assert any(not error(kernel(*inputs, split_keys=64, block_l=16), inputs) < tolerance for inputs in cases)


def test_addresses_of_32_bits_are_seen(tmp_path: Path):
    right, wrong = "(blocks * stride_block +", "((blocks.to(tl.int32) * stride_block.to(tl.int32)).to(tl.int64) +"
    kernel = mutated(decode_attention, tmp_path, right, wrong).paged_decode_attention
    assert error_past_2_31_numbers(kernel, tmp_path) > 0.1


QUANTIZED = {torch.int8: 1e-5, torch.float8_e4m3fn: 1e-5}


@pytest.mark.parametrize("cache_dtype", QUANTIZED, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_quantized_caches(dtype: torch.dtype, cache_dtype: torch.dtype):
    case = PrefillCase(n_head=3, head_dim=80, chunks=((1, 70), (1, 5), (1, 16)), dtype=dtype, cache_dtype=cache_dtype)
    (q, k_cache, v_cache, tables, starts, lens, slopes), beside = case.inputs()
    expected = prefill_by_definition((q, k_cache, v_cache, tables, starts, lens, slopes), beside)
    for kernel in (naive.paged_decode_attention, decode_attention.paged_decode_attention):
        out = kernel(q, k_cache, v_cache, tables, lens, slopes, **beside)
        assert (out.double() - expected).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("scores *= tl.load(k_scales_ptr", "scores += 0 * tl.load(k_scales_ptr"),
        ("weights *= tl.load(v_scales_ptr", "weights += 0 * tl.load(v_scales_ptr"),
        ("tl.load(v_scales_ptr + scale_offsets", "tl.load(k_scales_ptr + scale_offsets"),
    ],
)
def test_a_wrong_scale_is_seen(tmp_path: Path, right: str, wrong: str):
    case = PrefillCase(n_head=3, head_dim=80, chunks=((1, 70), (1, 5)), cache_dtype=torch.int8)
    (q, k_cache, v_cache, tables, starts, lens, slopes), beside = case.inputs()
    expected = prefill_by_definition((q, k_cache, v_cache, tables, starts, lens, slopes), beside)
    kernel = mutated(decode_attention, tmp_path, right, wrong).paged_decode_attention
    out = kernel(q, k_cache, v_cache, tables, lens, slopes, **beside)
    assert not (out.double() - expected).abs().max() < 1e-3


def test_a_result_depends_on_no_neighbour_and_no_width_of_the_tables():
    q, k_cache, v_cache, tables, lens, slopes = PagedCase(n_head=2, head_dim=64, context_lens=(90, 7, 300)).inputs()
    together = decode_attention.paged_decode_attention(q, k_cache, v_cache, tables, lens, slopes, split_keys=64)
    wide = torch.cat([tables, tables.new_full((3, 200), 2**30)], dim=1)
    for row in range(3):
        one = slice(row, row + 1)
        for table, longest in ((wide, None), (tables, int(lens[row]))):
            alone = decode_attention.paged_decode_attention(
                q[one], k_cache, v_cache, table[one], lens[one], slopes, split_keys=64, max_context_len=longest
            )
            assert torch.equal(alone, together[one])


def test_a_context_of_0_gives_0():
    q, k_cache, v_cache, tables, lens, slopes = PagedCase(n_head=2, head_dim=64, context_lens=(90, 7)).inputs()
    lens[1] = 0
    for split_keys in (32, 256):
        out = decode_attention.paged_decode_attention(q, k_cache, v_cache, tables, lens, slopes, split_keys=split_keys)
        assert (out[1] == 0).all()
        assert out[0].isfinite().all()
    assert (naive.paged_decode_attention(q, k_cache, v_cache, tables, lens, slopes)[1] == 0).all()
