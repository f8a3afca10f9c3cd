import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bloom import kernels
from bloom.kernels import naive
from tests.support.paged_attention import CASES, TOLERANCE, PagedCase, error


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
