import pytest
import torch
from torch import Tensor

from bloom.alibi import slopes
from bloom.attention import DenseCausalAttention

N, D = 3, 8


def qkv(tokens: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(3, tokens, N, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return x[0], x[1], x[2]


def one_by_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition, a query and a head at a time."""
    out = torch.empty_like(q)
    for i in range(q.shape[0]):
        for n, slope in enumerate(slopes(N)):
            scores = torch.stack([q[i, n] @ k[j, n] / D**0.5 - slope * (i - j) for j in range(i + 1)])
            out[i, n] = torch.softmax(scores, dim=0) @ v[: i + 1, n]
    return out


def test_attention_is_its_definition():
    q, k, v = qkv(14)
    out = DenseCausalAttention(slopes(N), 2, 7)(0, q, k, v)
    expected = torch.cat([one_by_one(q[:7], k[:7], v[:7]), one_by_one(q[7:], k[7:], v[7:])])
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


def test_segments_are_attended_as_if_they_were_alone():
    q, k, v = qkv(10)
    segments = torch.tensor([[5, 5, 5, 5, 2, 2, 2, 2, 2, 9]])
    out = DenseCausalAttention(slopes(N), 1, 10, segment_ids=segments)(0, q, k, v)
    for part in (slice(0, 4), slice(4, 9), slice(9, 10)):
        torch.testing.assert_close(out[part], one_by_one(q[part], k[part], v[part]), rtol=1e-6, atol=1e-6)


def test_padding_is_not_seen_and_stays_finite():
    q, k, v = qkv(8)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    out = DenseCausalAttention(slopes(N), 1, 8, padding_mask=mask)(0, q, k, v)
    torch.testing.assert_close(out[3:], one_by_one(q[3:], k[3:], v[3:]), rtol=1e-6, atol=1e-6)
    assert out.isfinite().all()


def test_a_head_share_takes_its_slopes_alone():
    q, k, v = qkv(6)
    whole = DenseCausalAttention(slopes(N), 1, 6)(0, q, k, v)
    share = DenseCausalAttention(slopes(N)[1:3], 1, 6)(0, q[:, 1:], k[:, 1:], v[:, 1:])
    torch.testing.assert_close(share, whole[:, 1:])


def test_gradients_are_those_of_finite_differences():
    x = torch.stack(qkv(6)).requires_grad_()
    attend = DenseCausalAttention([0.5, 0.25, 0.125], 2, 3, segment_ids=torch.tensor([[0, 0, 1], [0, 0, 0]]))
    assert torch.autograd.gradcheck(lambda x: attend(0, x[0], x[1], x[2]), x, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype_and_softmaxes_in_fp32(dtype: torch.dtype):
    """At distance 1,500 a bias in bf16 would be off by up to 4 times the slope."""
    q, k, v = qkv(1500, dtype=dtype)
    out = DenseCausalAttention(slopes(N), 1, 1500)(0, q, k, v)
    exact = DenseCausalAttention(slopes(N), 1, 1500)(0, q.double(), k.double(), v.double())
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=0.03 if dtype == torch.bfloat16 else 0.004)


def test_dropout_acts_on_the_probabilities_and_keeps_their_mean():
    q, k, v = qkv(64)
    attend = DenseCausalAttention(slopes(N), 1, 64, dropout=0.5)
    mean = torch.stack([attend(layer, q, k, v) for layer in range(400)]).mean(dim=0)
    assert not torch.equal(attend(0, q, k, v), attend(1, q, k, v))
    assert torch.equal(attend(0, q, k, v), attend(0, q, k, v))  # a layer that is computed again drops the same
    assert (mean - DenseCausalAttention(slopes(N), 1, 64)(0, q, k, v)).abs().mean() < 0.05


@pytest.mark.parametrize("name", ["segment_ids", "padding_mask"])
def test_a_mask_of_another_shape_is_named(name: str):
    with pytest.raises(ValueError, match=rf"{name} has shape \(1, 4\); use .* \(1, 5\)"):
        DenseCausalAttention(slopes(N), 1, 5, **{name: torch.ones(1, 4)})
