"""int8 products against their plain definitions, in double precision and in integers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bloom.int8 import (
    Int8Embedding,
    Int8Linear,
    dequantize,
    int8_dynamic_linear,
    int8_linear,
    quantize,
    quantize_tokens,
)

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
FORMATS = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}  # of the largest output


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(x: Tensor, exact: Tensor) -> float:
    return ((x.double() - exact).abs().max() / exact.abs().max()).item()


@settings(deadline=None)
@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(FLOATS, min_size=n, max_size=n), min_size=1, max_size=4)))
def test_every_number_is_kept_to_half_a_step_of_its_row(rows: list[list[float]]):
    w = torch.tensor(rows)
    q, scale = quantize(w)
    assert q.dtype == torch.int8
    assert q.abs().max() <= 127
    assert torch.equal(scale, w.abs().amax(dim=1) / 127)
    kept = q.double() * scale.double()[:, None]
    # Half a step; rounding of scale and quotient adds a little; below fp32's normal numbers steps are coarse.
    assert ((kept - w.double()).abs() <= 0.5001 * scale.double()[:, None] + 1e-36).all()


def test_the_largest_of_a_row_becomes_127_and_zeros_stay_zeros():
    q, scale = quantize(torch.tensor([[0.5, -2.0, 1.0], [0.0, 0.0, 0.0]]))
    assert q.tolist() == [[32, -127, 64], [0, 0, 0]]
    assert scale.tolist() == [torch.tensor(2 / 127).item(), 0.0]


def test_numbers_between_two_steps_go_to_the_even_one():
    q, _ = quantize(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]]))
    assert q.tolist() == [[127, 0, 2, 2, 0, -2]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite_are_refused_with_their_row(value: float):
    w = torch.ones(3, 4)
    w[1, 2] = value
    with pytest.raises(ValueError, match=r"row 1 holds a number that is not finite; .* use float weights"):
        quantize(w)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_the_weight_only_product_is_that_of_the_numbers_int8_stands_for(dtype, tokens, monkeypatch):
    monkeypatch.setattr("bloom.int8._CHUNK_ROWS", 7)  # two chunks and a part of one
    x, (q, scale) = normal(tokens, 33).to(dtype), quantize(normal(19, 33, seed=1))
    exact = x.double() @ (q.double() * scale.double()[:, None]).T
    out = int8_linear(x, q, scale)
    assert out.dtype == dtype
    assert relative_error(out, exact) < TOLERANCE[dtype]


def test_sums_beyond_the_range_of_fp16_do_not_overflow():
    x, (q, scale) = torch.full((1, 512), 100.0, dtype=torch.float16), quantize(torch.full((3, 512), 0.01))
    assert int8_linear(x, q, scale).tolist() == [[512.0] * 3]


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_the_dynamic_product_is_exact_in_integers(dtype, tokens):
    x, (q, scale) = normal(tokens, 33).to(dtype), quantize(normal(19, 33, seed=1))
    x_q = [[round(value / (max(map(abs, row)) / 127)) for value in row] for row in x.double().tolist()]
    x_scale = x.double().abs().amax(dim=1) / 127
    assert quantize_tokens(x)[0].tolist() == x_q
    sums = torch.tensor([[sum(a * b for a, b in zip(r, w, strict=True)) for w in q.tolist()] for r in x_q])
    exact = sums.double() * x_scale[:, None] * scale.double()
    out = int8_dynamic_linear(x, q, scale)
    assert out.dtype == dtype
    assert relative_error(out, exact) < TOLERANCE[dtype] / 2


def test_a_token_of_zeros_gives_zeros_and_one_of_nan_gives_nan():
    x = torch.stack([torch.zeros(8), torch.full((8,), torch.nan)])
    out = int8_dynamic_linear(x, *quantize(normal(5, 8)))
    assert out[0].tolist() == [0.0] * 5
    assert out[1].isnan().all()


def test_dynamic_sums_of_the_widest_model_fit():
    q = torch.full((8, 57344), 127, dtype=torch.int8)  # dense_4h_to_h of 176b
    out = int8_dynamic_linear(torch.ones(1, 57344), q, torch.ones(8))
    assert relative_error(out, torch.full((1, 8), 57344 * 127.0, dtype=torch.float64)) < 1e-6


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_linear_layer_adds_its_bias_or_has_none(dynamic: bool):
    linear = nn.Linear(16, 24)
    layer = Int8Linear(linear, dynamic=dynamic)
    layer.weight, layer.weight_scale = quantize(linear.weight.detach())
    x = normal(2, 16)
    with torch.no_grad():
        assert relative_error(layer(x), linear(x).double()) < 0.02
        with_bias = layer(x)
        layer.register_parameter("bias", None)
        assert torch.allclose(layer(x) + linear.bias, with_bias)


def test_the_embedding_gives_rows_and_as_the_head_logits():
    embedding = nn.Embedding(50, 16, dtype=torch.bfloat16)
    table = Int8Embedding(embedding, dynamic=False)
    table.weight, table.weight_scale = quantize(embedding.weight.detach())
    ids = torch.tensor([7, 0, 49])
    kept = dequantize(table.weight, table.weight_scale)
    assert torch.equal(table(ids), kept[ids].to(torch.bfloat16))
    hidden = normal(2, 16)
    assert torch.allclose(table.logits(hidden), hidden @ kept.T, atol=1e-5)
