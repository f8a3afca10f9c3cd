"""Paged prefill attention in Triton's interpreter; test_interpreted.py runs this file with TRITON_INTERPRET=1."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bloom.kernels import naive, prefill_attention
from tests.support.paged_attention import PREFILL_CASES, TOLERANCE, PrefillCase, prefill_by_definition
from tests.support.triton_interpreter import correct_the_interpreter, fresh_memory_holds_nan, mutated

correct_the_interpreter()
SMALL = PrefillCase(n_head=3, head_dim=64, chunks=((20, 20), (1, 33), (20, 70)))


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    with fresh_memory_holds_nan():
        yield


def error(out: Tensor, inputs: tuple[Tensor, ...], beside: dict[str, Tensor]) -> float:
    return (out.double() - prefill_by_definition(inputs, beside)).abs().max().item()


@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, torch.float32) for case in PREFILL_CASES), *((PREFILL_CASES[1], dtype) for dtype in TOLERANCE)],
    ids=str,
)
def test_the_kernel_equals_the_definition(case: PrefillCase, dtype: torch.dtype):
    inputs, beside = replace(case, dtype=dtype).inputs()
    for norms in ({}, beside):
        out = prefill_attention.paged_prefill_attention(*inputs, **norms)
        assert out.dtype == dtype
        assert error(out, inputs, beside) < TOLERANCE[dtype]


@pytest.mark.parametrize("cache_dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_quantized_caches(dtype: torch.dtype, cache_dtype: torch.dtype):
    inputs, beside = replace(SMALL, dtype=dtype, cache_dtype=cache_dtype).inputs()
    assert error(prefill_attention.paged_prefill_attention(*inputs, **beside), inputs, beside) < TOLERANCE[dtype]


def test_a_result_does_not_depend_on_chunks_or_neighbours():
    case = PrefillCase(n_head=2, head_dim=64, chunks=((90, 90),), key_scale=3.0)
    (q, k_cache, v_cache, tables, starts, lens, slopes), beside = case.inputs()
    config = (32, 32, 4, 1)
    whole = prefill_attention.paged_prefill_attention(
        q, k_cache, v_cache, tables, starts, lens, slopes, **beside, config=config
    )
    for start, end in ((0, 37), (37, 38), (38, 90)):
        both = torch.cat([tables, tables])
        chunk = prefill_attention.paged_prefill_attention(
            torch.cat([q[:1], q[start:end]]),
            k_cache,
            v_cache,
            both,
            torch.tensor([0, 1, 1 + end - start], dtype=torch.int32),
            torch.tensor([1, end], dtype=torch.int32),
            slopes,
            **beside,
            config=config,
        )
        assert torch.equal(chunk[1:], whole[start:end])


def test_rows_past_the_last_start_are_0():
    (q, *rest), _ = SMALL.inputs()
    padded = torch.cat([q, torch.full_like(q[:5], float("nan"))])
    for kernel in (prefill_attention.paged_prefill_attention, naive.paged_prefill_attention):
        out = kernel(padded, *rest)
        assert (out[len(q) :] == 0).all()
        assert torch.equal(out[: len(q)], kernel(q, *rest))


MUTATIONS = {
    "slope of the next head": ("slopes_ptr + head)", "slopes_ptr + (head + 1) % tl.num_programs(0))"),
    "no slope": ("scores += slope", "scores += 0.0 * slope"),
    "slope of the wrong sign": ("scores += slope", "scores -= slope"),
    "sees the next token": ("keys[None, :] <= positions", "keys[None, :] <= 1 + positions"),
    "does not see itself": ("keys[None, :] <= positions", "keys[None, :] <= tl.maximum(positions - 1, 0)"),
    "positions off by one": (
        "positions = context_len - end_row + rows",
        "positions = context_len - end_row + rows - 1",
    ),
    "not scaled": ('input_precision="ieee") * scale', 'input_precision="ieee")'),
    "exp instead of exp2": ("tl.exp2(scores", "tl.exp(scores"),
    "accumulator not rescaled": ("acc = acc * rescale[:, None]", "acc = acc * 1.0"),
    "total not rescaled": ("total = total * rescale", "total = total"),
    "last step dropped": ("tl.range(begin, last + 1, block_n)", "tl.range(begin, last, block_n)"),
    "block table ignored": ("tl.load(table_ptr + keys // block_size, mask=valid, other=0)", "(keys // block_size)"),
    "tile of the wrong sequence": ("axis=0) - 1\n", "axis=0) - 2\n"),
    "values of head 0": ("v_ptr + offsets[:, None]", "v_ptr - head_offset + offsets[:, None]"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_mistake_is_seen(tmp_path: Path, name: str):
    kernel = mutated(prefill_attention, tmp_path, *MUTATIONS[name]).paged_prefill_attention
    cases = (PrefillCase(n_head=3, head_dim=64, chunks=((9, 9), (20, 33), (5, 70))), SMALL)
    made = (case.inputs() for case in cases)
    assert any(not error(kernel(*inputs), inputs, beside) < TOLERANCE[torch.float32] for inputs, beside in made)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("scores *= tl.load(k_scales_ptr", "scores += 0 * tl.load(k_scales_ptr"),
        ("weights *= tl.load(v_scales_ptr", "weights += 0 * tl.load(v_scales_ptr"),
        ("tl.load(v_scales_ptr + scale_offsets", "tl.load(k_scales_ptr + scale_offsets"),
    ],
)
def test_a_wrong_scale_is_seen(tmp_path: Path, right: str, wrong: str):
    inputs, beside = replace(SMALL, cache_dtype=torch.int8).inputs()
    kernel = mutated(prefill_attention, tmp_path, right, wrong).paged_prefill_attention
    assert not error(kernel(*inputs, **beside), inputs, beside) < 1e-3
