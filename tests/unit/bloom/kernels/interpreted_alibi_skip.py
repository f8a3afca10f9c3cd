"""Leaving out blocks, by the kernels in Triton's interpreter; test_interpreted.py runs this with TRITON_INTERPRET=1.

N = heads, D = head dim, L = context, M = blocks
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bloom.kernels import alibi_skip, decode_attention, naive, prefill_attention
from tests.support.alibi_skip import BLOCK_SIZE, SkipCase, kept_of
from tests.support.triton_interpreter import correct_the_interpreter, fresh_memory_holds_nan, mutated

correct_the_interpreter()
TOLERANCE = 2.0**-9
CASES = {
    "short": SkipCase.random(n_head=3, context_len=5, norm=1.0),
    "moderate": SkipCase.random(n_head=3, context_len=170, norm=2.0),
    "long": SkipCase.random(n_head=2, context_len=2500, norm=4.0),
    "adversarial": SkipCase.adversarial(n_head=3, context_len=300, norm=4.0),
}


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    with fresh_memory_holds_nan():
        yield


def paged(case: SkipCase) -> tuple[Tensor, ...]:
    """Keys, values, table, lens, norms (M, N): the blocks in reverse order, then one that nobody has."""
    num_blocks = case.cache.shape[1]
    k, v = torch.cat([case.cache.flip(1), torch.full_like(case.cache[:, :1], torch.nan)], dim=1)
    table = torch.arange(num_blocks - 1, -1, -1, dtype=torch.int32)[None]
    table = torch.cat([table, torch.full((1, 2), num_blocks, dtype=torch.int32)], dim=1)
    norms = torch.cat([case.key_norms.T.flip(0), torch.full_like(case.key_norms.T[:1], torch.nan)])
    return k, v, table, torch.tensor([case.context_len], dtype=torch.int32), norms.contiguous()


def kept_by_kernel(case: SkipCase, module: object = alibi_skip, split: int = 16) -> Tensor:
    k, _, table, lens, norms = paged(case)
    num_words = -(-case.cache.shape[1] // split)
    words = module.kept_words(
        case.q,
        k,
        None,
        norms,
        table,
        lens,
        case.slopes,
        tolerance=TOLERANCE,
        num_words=num_words,
        blocks_per_word=split,
    )[0]
    return ((words[..., None] >> torch.arange(split)) & 1).bool().flatten(1)[:, : case.cache.shape[1]]


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_decides_as_its_twin(name: str):
    case = CASES[name]
    for split in (2, 16, 32):
        assert torch.equal(kept_by_kernel(case, split=split), kept_of(case, TOLERANCE))


@pytest.mark.parametrize("name", CASES)
def test_what_is_left_out_is_not_read(name: str):
    """Blocks that no head needs hold NaN, and the result is right."""
    case = replace(CASES[name], cache=CASES[name].cache.clone())
    kept = kept_of(case, TOLERANCE)
    expected = case.attend(kept)
    exact = case.attend(torch.ones_like(kept))
    case.cache.permute(1, 3, 0, 2, 4)[~kept.T] = torch.nan  # (M, N, ...): what a head leaves out
    k, v, table, lens, norms = paged(case)
    options = {"key_norms": norms, "alibi_tolerance": TOLERANCE}
    out = decode_attention.paged_decode_attention(case.q, k, v, table, lens, case.slopes, **options)[0]
    assert (out - expected).abs().max() < 1e-5
    starts = torch.tensor([0, 1], dtype=torch.int32)
    count = torch.zeros(len(kept), dtype=torch.int32)
    prefilled = prefill_attention.paged_prefill_attention(
        case.q, k, v, table, starts, lens, case.slopes, **options, blocks_read=count
    )[0]
    assert (prefilled - expected).abs().max() < 1e-5
    assert torch.equal(count, kept.sum(dim=-1, dtype=torch.int32))
    values = case.values()[:, :, :1].nan_to_num(nan=0.0)  # of what is left, the bound of the error
    assert (expected - exact).abs().max() <= 2 * TOLERANCE * max(10.0, float(values.abs().max()))


def test_twins_leave_out_the_same():
    case = CASES["moderate"]
    k, v, table, lens, norms = paged(case)
    expected = case.attend(kept_of(case, TOLERANCE)).float()
    options = {"key_norms": norms, "alibi_tolerance": TOLERANCE}
    out = naive.paged_decode_attention(case.q, k, v, table, lens, case.slopes, **options)
    torch.testing.assert_close(out[0], expected, rtol=0, atol=1e-5)
    starts = torch.tensor([0, 1], dtype=torch.int32)
    out = naive.paged_prefill_attention(case.q, k, v, table, starts, lens, case.slopes, **options)
    torch.testing.assert_close(out[0], expected, rtol=0, atol=1e-5)


def test_a_row_that_leaves_out_what_its_neighbours_need_gets_nothing_of_it():
    """Rows of one tile, each as if it were alone."""
    case = SkipCase.random(n_head=2, context_len=170, norm=2.0)
    k, v, table, lens, norms = paged(case)
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(20, 2, case.q.shape[-1], generator=generator) * torch.tensor([0.1, 4.0]).repeat(10)[:, None, None]
    options = {"key_norms": norms, "alibi_tolerance": TOLERANCE, "config": (32, 32, 4, 1)}
    together = prefill_attention.paged_prefill_attention(
        q, k, v, table, torch.tensor([0, 20], dtype=torch.int32), lens, case.slopes, **options
    )
    for row in range(20):
        alone = prefill_attention.paged_prefill_attention(
            q[row : row + 1],
            k,
            v,
            table,
            torch.tensor([0, 1], dtype=torch.int32),
            lens - 19 + row,
            case.slopes,
            **options,
        )
        assert torch.equal(alone[0], together[row])
    exact = prefill_attention.paged_prefill_attention(
        q,
        k,
        v,
        table,
        torch.tensor([0, 20], dtype=torch.int32),
        lens,
        case.slopes,
        alibi_tolerance=0.0,
        key_norms=norms,
    )
    assert 0 < (together - exact).abs().max() < 2 * TOLERANCE * 10  # something was left out


MUTATIONS = {
    "distance of the farthest key": ("(blocks * block_size + (block_size - 1))", "(blocks * block_size)"),
    "norm not multiplied": ("q_norm * key_norm * scale", "q_norm * scale"),
    "own score forgotten": ("- own + log_size", "+ log_size"),
    "a key instead of a block": ("own + log_size", "own"),
    "sum not carried from chunk to chunk": ("total += tl.sum(masses, axis=0)", "total += 0.0"),
    "bits in the wrong order": (
        "tl.arange(0, blocks_per_word)[None, :], axis=1",
        "(15 - tl.arange(0, 16))[None, :], axis=1",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_mistake_is_seen(tmp_path: Path, name: str):
    module = mutated(alibi_skip, tmp_path, *MUTATIONS[name])
    cases = [*CASES.values(), evenly(), SkipCase.random(n_head=3, context_len=170, norm=1e-3)]
    assert not all(torch.equal(kept_by_kernel(case, module), kept_of(case, TOLERANCE)) for case in cases)


def evenly() -> SkipCase:
    """Blocks that can each be left out, but not all: the sum decides, in the second chunk of 128."""
    case = SkipCase.random(n_head=1, context_len=200 * BLOCK_SIZE, norm=0.0)
    distance = torch.arange(199, -1, -1) * BLOCK_SIZE + 0.0
    q_norm = case.q.norm() * case.q.shape[-1] ** -0.5
    wanted = TOLERANCE / 150 / BLOCK_SIZE
    case.key_norms[0] = (torch.tensor(wanted).log() + case.slopes[0] * distance) / q_norm
    return case


def test_without_a_mistake_the_even_case_agrees_and_the_sum_decides():
    kept = kept_of(evenly(), TOLERANCE)[0]
    assert not kept[:140].any()
    assert kept[155:].all()
    assert (kept_by_kernel(evenly())[0] != kept).sum() <= 1  # a rounding decides about one block
