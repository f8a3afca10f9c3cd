"""One product by the operators, against NumPy's in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bloom.cpu import CannotBuild, load_library
from bloom.cpu.compile import supported_levels
from bloom.cpu.library import KINDS, Linear

try:
    load_library()
except CannotBuild as error:
    pytest.skip(f"no operators: {error}", allow_module_level=True)

# The greatest error of a product with itself, relative to |x| |w|: rounding of weights, of activations, of sums.
BOUNDS = {"float32": 2e-6, "bfloat16": 8e-3, "int8": 8e-3, "int8_dynamic": 1.6e-2}


def multiply(level: str, kind: str, x: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """x (M, K) times weight (N, K) transposed."""
    c = load_library(level).c
    (m, k), n = x.shape, len(weight)
    context = c.bloom_open(2)
    scales, sums = np.zeros(-(-n // 32) * 32, dtype=np.float32), np.zeros(-(-n // 32) * 32, dtype=np.int32)
    linear = Linear(rows=n, columns=k, kind=KINDS[kind], scales=scales.ctypes.data, sums=sums.ctypes.data)
    size = c.bloom_panels_bytes(linear)
    linear.panels = c.bloom_allocate(size)
    out = np.full((m, n), np.nan, dtype=np.float32)
    assert c.bloom_pack(context, linear, 0, n, weight.ctypes.data, k, 0)
    c.bloom_linear(context, linear, x.ctypes.data, m, k, out.ctypes.data, n)
    c.bloom_free(linear.panels, size)
    c.bloom_close(context)
    return out


@pytest.mark.parametrize("level", supported_levels())
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(m=st.integers(1, 70), k=st.integers(1, 1500), n=st.integers(1, 100), seed=st.integers(0, 2**32 - 1))
def test_a_product_of_any_shape_is_that_of_numpy(level: str, kind: str, m: int, k: int, n: int, seed: int):
    random = np.random.default_rng(seed)
    x = random.standard_normal((m, k)).astype(np.float32)
    weight = random.standard_normal((n, k)).astype(np.float32)
    norms = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(weight, axis=1)[None]
    error = np.abs(multiply(level, kind, x, weight) - x.astype(np.float64) @ weight.T.astype(np.float64)) / norms
    assert error.max() < BOUNDS[kind]


@pytest.mark.parametrize("level", supported_levels())
@pytest.mark.parametrize("kind", ["int8", "int8_dynamic"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_greatest_int8_products_do_not_overflow(level: str, kind: str, sign: int):
    x = np.full((9, 16384), 3.0, dtype=np.float32)  # all of them at the end of the range, as many as bloom-7b1 has
    weight = np.full((33, 16384), 0.5 * sign, dtype=np.float32)
    assert multiply(level, kind, x, weight) == pytest.approx(np.full((9, 33), 16384 * 1.5 * sign), rel=1e-5)


@pytest.mark.parametrize("level", supported_levels())
def test_weights_alone_in_int8_keep_what_is_small_in_a_row_of_activations(level: str):
    x = np.full((1, 64), 1e-3, dtype=np.float32)  # of 8 bits none would be left of these
    x[0, 0] = 1.0
    weight = np.ones((32, 64), dtype=np.float32)
    weight[:, 0] = 0
    assert multiply(level, "int8", x, weight) == pytest.approx(np.full((1, 32), 0.063), rel=0.02)
