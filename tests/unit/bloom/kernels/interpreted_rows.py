"""LayerNorms, GELU and products in Triton's interpreter; test_interpreted.py runs this file with TRITON_INTERPRET=1."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from bloom.kernels import gelu, invariant_linear, naive, quantized_linear, residual_norm, row_norm
from tests.support.triton_interpreter import correct_the_interpreter, fresh_memory_holds_nan, mutated

correct_the_interpreter()
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
EPS = 1e-5


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    with fresh_memory_holds_nan():
        yield


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def spaced(x: Tensor) -> Tensor:
    """The same rows in a wider tensor of NaN."""
    wide = torch.full((x.shape[0], x.shape[1] + 3), torch.nan, dtype=x.dtype)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def close(got: Tensor, expected: Tensor) -> bool:
    assert got.dtype == expected.dtype
    tolerance = TOLERANCE[got.dtype]
    return torch.allclose(got.float(), expected.float(), rtol=tolerance, atol=tolerance)


def norm_inputs(size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, residual = (spaced(normal(3, size, dtype=dtype, seed=seed) + 2) for seed in (0, 1))
    return x, residual, normal(size, dtype=dtype, seed=2), normal(size, dtype=dtype, seed=3)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", [1, 48, 1024, 1792])
def test_layer_norms(size: int, dtype: torch.dtype):
    x, residual, weight, bias = norm_inputs(size, dtype)
    assert close(row_norm.layer_norm(x, weight, bias, EPS), naive.layer_norm(x, weight, bias, EPS))
    got, total = residual_norm.add_layer_norm(x, residual, weight, bias, EPS)
    expected, expected_total = naive.add_layer_norm(x, residual, weight, bias, EPS)
    assert torch.equal(total, expected_total)
    assert close(got, expected)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", [1, 192, 1500])
def test_bias_gelu(size: int, dtype: torch.dtype):
    x, bias = spaced(normal(3, size, dtype=dtype) * 4), normal(size, dtype=dtype, seed=1)
    assert close(gelu.bias_gelu(x, bias), naive.bias_gelu(x, bias))


SHAPES = [(1, 64, 48), (5, 200, 100), (40, 96, 130), (70, 33, 7)]  # M, K, N


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear(shape: tuple[int, int, int], dtype: torch.dtype):
    m, k, n = shape
    x, weight, bias = (
        spaced(normal(m, k, dtype=dtype)),
        spaced(normal(n, k, dtype=dtype) / k**0.5),
        normal(n, dtype=dtype),
    )
    for b in (bias, None):
        assert close(invariant_linear.linear(x, weight, b), naive.linear(x, weight, b))


def test_a_row_of_linear_does_not_depend_on_the_others():
    x, weight = normal(100, 70), normal(50, 70, seed=1)
    whole = invariant_linear.linear(x, weight)
    for rows in (slice(0, 1), slice(7, 40), slice(99, 100)):
        assert torch.equal(invariant_linear.linear(x[rows], weight), whole[rows])


def int8_inputs(m: int, k: int, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight = torch.randint(-127, 128, (n, k), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    scales = (normal(n, seed=2).abs() + 0.1) / (127 * k**0.5)
    return spaced(normal(m, k, dtype=dtype)), weight, scales, normal(n, dtype=dtype, seed=3)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 1100, 40)], ids=str)
def test_int8_linear(shape: tuple[int, int, int], dtype: torch.dtype):
    x, weight, scales, bias = int8_inputs(*shape, dtype)
    for b in (bias, None):
        for num_parts in (None, 3):
            got = quantized_linear.int8_linear(x, weight, scales, b, num_parts=num_parts)
            assert close(got, naive.int8_linear(x, weight, scales, b))


def norms_agree(row: ModuleType, added: ModuleType) -> bool:
    x, residual, weight, bias = norm_inputs(48, torch.float32)
    x[0] = 1e-3 * x[0]  # eps counts
    residual[0] = 1e-3 * residual[0]
    plain = row.layer_norm(x, weight, bias, EPS)
    both = added.add_layer_norm(x, residual, weight, bias, EPS)[0]
    expected = naive.add_layer_norm(x, residual, weight, bias, EPS)[0]
    return close(plain, naive.layer_norm(x, weight, bias, EPS)) and close(both, expected)


def test_without_a_mistake_the_norms_agree():
    assert norms_agree(row_norm, residual_norm)


@pytest.mark.parametrize(
    ("module", "right", "wrong"),
    [
        (row_norm, "tl.sum(x, axis=0) / size", "tl.sum(x, axis=0) / (size + 1)"),
        (row_norm, "tl.where(in_row, x - mean, 0.0)", "x - mean"),
        (row_norm, "variance + eps", "variance"),
        (row_norm, " * weight + bias", " * weight"),
        (row_norm, " * weight + bias", " + bias"),
        (residual_norm, "(x + residual)", "(x + x)"),
        (residual_norm, "normalized(total.to(tl.float32)", "normalized(x + 0.0"),
    ],
)
def test_a_planted_mistake_in_a_norm_is_seen(tmp_path: Path, module: ModuleType, right: str, wrong: str):
    changed = mutated(module, tmp_path, right, wrong)
    modules = (changed, residual_norm) if module is row_norm else (row_norm, changed)
    assert not norms_agree(*modules)


@pytest.mark.parametrize(("right", "wrong"), [("0.044715", "0.04"), ("1.59", "0.79"), ("x += tl.load", "x -= tl.load")])
def test_a_planted_mistake_in_the_gelu_is_seen(tmp_path: Path, right: str, wrong: str):
    x, bias = normal(3, 50), normal(50, seed=1)
    assert not close(mutated(gelu, tmp_path, right, wrong).bias_gelu(x, bias), naive.bias_gelu(x, bias))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("acc *= tl.load(scales_ptr", "acc += 0 * tl.load(scales_ptr"),
        ("scales_ptr + outputs", "scales_ptr + outputs * 0"),
        ("acc += tl.load(bias_ptr", "acc -= tl.load(bias_ptr"),
        ("tl.minimum((part + 1) * part_inputs, num_inputs)", "(part + 1) * part_inputs - block_k"),
        ("part.to(tl.int64) * num_rows * num_outputs", "part.to(tl.int64) * 0"),
    ],
)
def test_a_planted_mistake_in_the_int8_product_is_seen(tmp_path: Path, right: str, wrong: str):
    x, weight, scales, bias = int8_inputs(3, 200, 40, torch.float32)
    module = mutated(quantized_linear, tmp_path, right, wrong)
    expected = naive.int8_linear(x, weight, scales, bias)
    results = [module.int8_linear(x, weight, scales, bias, num_parts=parts) for parts in (1, 3)]
    assert not all(close(result, expected) for result in results)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("acc += tl.load(bias_ptr", "acc -= tl.load(bias_ptr"),
        ("within % group", "0"),
        ("tl.range(0, num_inputs, block_k)", "tl.range(0, num_inputs - block_k, block_k)"),
    ],
)
def test_a_planted_mistake_in_the_product_is_seen(tmp_path: Path, right: str, wrong: str):
    x, weight, bias = normal(70, 90), normal(50, 90, seed=1), normal(50, seed=2)
    out = mutated(invariant_linear, tmp_path, right, wrong).linear(x, weight, bias)
    assert not close(out, naive.linear(x, weight, bias))
