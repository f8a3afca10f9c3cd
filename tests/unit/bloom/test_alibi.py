import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from bloom.alibi import slopes


def test_slopes_of_16_heads():
    assert slopes(16) == pytest.approx([2 ** (-k / 2) for k in range(1, 17)], rel=1e-15)


def test_golden_slopes_of_bloom_176b():
    of_112 = slopes(112)
    assert len(of_112) == 112
    assert of_112[0] == pytest.approx(0.9170040432046712, rel=1e-14)
    assert of_112[63] == pytest.approx(0.00390625, rel=1e-14)
    assert of_112[64] == pytest.approx(0.9576032806985737, rel=1e-14)
    assert of_112[111] == pytest.approx(0.01631677785042834, rel=1e-14)
    assert sum(of_112) == pytest.approx(22.36329090314222, rel=1e-14)


@given(st.integers(1, 256))
def test_slopes_are_those_of_transformers_for_any_head_count(n_head: int):
    theirs = build_alibi_tensor(torch.ones(1, 2), n_head, torch.float32)[:, 0, 1]  # position 1: the slope itself
    torch.testing.assert_close(torch.tensor(slopes(n_head)), theirs, rtol=2e-5, atol=0)


def test_no_head_has_no_slopes():
    with pytest.raises(ValueError, match="n_head=0"):
        slopes(0)
