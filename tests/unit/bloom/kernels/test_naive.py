import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.models.bloom.modeling_bloom import bloom_gelu_forward

from bloom import kernels
from bloom.kernels import naive
from bloom.kernels.naive.kv_cache import quantize
from tests.support.paged_attention import (
    CASES,
    PREFILL_CASES,
    TOLERANCE,
    PagedCase,
    PrefillCase,
    error,
    prefill_by_definition,
)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_paged_decode_attention_is_its_definition(case: PagedCase, dtype: torch.dtype):
    inputs = dataclasses.replace(case, dtype=dtype).inputs()
    out = naive.paged_decode_attention(*inputs)
    assert out.dtype == dtype
    assert error(out, inputs) < TOLERANCE[dtype]


@settings(max_examples=40, deadline=None)
@given(
    n_head=st.integers(1, 9),
    head_dim=st.integers(1, 40),
    context_lens=st.lists(st.integers(1, 60), min_size=1, max_size=5).map(tuple),
    block_size=st.integers(1, 20),
)
def test_any_shape_of_cache_and_batch(n_head: int, head_dim: int, context_lens: tuple[int, ...], block_size: int):
    case = PagedCase(n_head=n_head, head_dim=head_dim, context_lens=context_lens, block_size=block_size)
    inputs = case.inputs()
    assert error(naive.paged_decode_attention(*inputs), inputs) < TOLERANCE[torch.float32]


def test_table_entries_past_the_context_are_not_read():
    q, k_cache, v_cache, tables, lens, slopes = PagedCase(n_head=2, head_dim=16, context_lens=(40, 9)).inputs()
    tables[0, 3:] = tables[1, 1:] = 2**30  # no cache has this block
    inputs = (q, k_cache, v_cache, tables, lens, slopes)
    assert error(naive.paged_decode_attention(*inputs), inputs) < TOLERANCE[torch.float32]


def test_a_sequence_gives_the_same_beside_any_neighbours():
    q, k_cache, v_cache, tables, lens, slopes = PagedCase(n_head=6, head_dim=64, context_lens=(90, 7, 300)).inputs()
    together = naive.paged_decode_attention(q, k_cache, v_cache, tables, lens, slopes)
    for row in range(3):
        one = slice(row, row + 1)
        alone = naive.paged_decode_attention(q[one], k_cache, v_cache, tables[one], lens[one], slopes)
        torch.testing.assert_close(alone, together[one], rtol=0, atol=1e-6)


def test_on_the_cpu_the_dispatcher_takes_the_twin():
    inputs = PagedCase(n_head=4, head_dim=16, context_lens=(20, 3)).inputs()
    assert torch.equal(kernels.paged_decode_attention(*inputs), naive.paged_decode_attention(*inputs))


@pytest.mark.parametrize("cache_dtype", [None, torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", PREFILL_CASES, ids=str)
def test_paged_prefill_attention_is_its_definition(
    case: PrefillCase, dtype: torch.dtype, cache_dtype: torch.dtype | None
):
    inputs, beside = dataclasses.replace(case, dtype=dtype, cache_dtype=cache_dtype).inputs()
    out = naive.paged_prefill_attention(*inputs, **beside)
    assert out.dtype == dtype
    assert (out.double() - prefill_by_definition(inputs, beside)).abs().max() < TOLERANCE[dtype]


def test_the_gelu_is_blooms():
    x, bias = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 4, torch.linspace(-1, 1, 40)
    torch.testing.assert_close(naive.bias_gelu(x, bias), bloom_gelu_forward(x + bias), rtol=1e-5, atol=1e-6)


def test_a_quantized_key_is_within_half_a_step():
    x = torch.randn(50, 3, 64, generator=torch.Generator().manual_seed(0))
    stored, scale = quantize(x, torch.int8)
    assert (stored.abs().amax(dim=-1) == 127).all()
    assert ((stored * scale[..., None] - x).abs() <= 0.5001 * scale[..., None]).all()
    stored, scale = quantize(torch.zeros(2, 1, 8), torch.int8)
    assert (stored == 0).all()
    assert (scale == 0).all()


@pytest.mark.parametrize(
    "filters", [{}, {"top_ks": 40}, {"top_ps": 0.8}, {"min_ps": 0.05}, {"top_ks": 30, "top_ps": 0.7}]
)
def test_what_is_drawn_has_the_probabilities_of_transformers(filters: dict[str, float]):
    """Draws at evenly many positions of one row, against the processed distribution."""
    num, temperature = 3000, 0.8
    row = torch.randn(200, generator=torch.Generator().manual_seed(0)) * 2
    warpers = {"top_ks": TopKLogitsWarper, "top_ps": TopPLogitsWarper, "min_ps": MinPLogitsWarper}
    scores = row[None] / temperature
    for name, value in filters.items():
        scores = warpers[name](value)(None, scores)
    expected = scores.softmax(dim=-1)[0]
    tensors = {
        n: torch.full((num,), v, dtype=torch.int32 if n == "top_ks" else torch.float32) for n, v in filters.items()
    }
    drawn = naive.sample(
        row.expand(num, -1), torch.full((num,), 11), torch.arange(num), torch.full((num,), temperature), **tensors
    )
    shares = drawn.bincount(minlength=200) / num
    assert (shares[expected == 0] == 0).all()
    assert (shares - expected).abs().max() < 4 * (0.25 / num) ** 0.5
