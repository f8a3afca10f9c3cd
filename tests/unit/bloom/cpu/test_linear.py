"""One product by the operators, against NumPy's in float64."""

from typing import Any

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
INNER = st.integers(1, 1500) | st.integers(1, 24).map(lambda n: 64 * n)  # the latter fill tile registers


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
@given(m=st.integers(1, 70), k=INNER, n=st.integers(1, 100), seed=st.integers(0, 2**32 - 1))
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


@pytest.mark.parametrize("level", supported_levels())
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(m=st.integers(2, 70), k=INNER, seed=st.integers(0, 2**32 - 1), data=st.data())
def test_a_row_has_the_same_bits_alone_and_among_others(level: str, kind: str, m: int, k: int, seed: int, data: Any):
    random = np.random.default_rng(seed)
    x, weight = (random.standard_normal((rows, k)).astype(np.float32) for rows in (m, 40))
    row = data.draw(st.integers(0, m - 1))
    np.testing.assert_array_equal(
        multiply(level, kind, x[row : row + 1], weight)[0], multiply(level, kind, x, weight)[row]
    )


@pytest.mark.parametrize("level", supported_levels())
@pytest.mark.parametrize("kind", KINDS)
def test_more_rows_than_are_computed_together_have_the_same_bits(level: str, kind: str):
    random = np.random.default_rng(0)
    x, weight = (random.standard_normal((rows, 1024)).astype(np.float32) for rows in (1100, 64))
    several = [multiply(level, kind, part, weight) for part in np.split(x, [7, 530])]
    np.testing.assert_array_equal(np.concatenate(several), multiply(level, kind, x, weight))


@pytest.mark.skipif(not supported_levels()[0].startswith("amx"), reason="AMX alone")
@pytest.mark.parametrize("kind", ["int8", "int8_dynamic"])
def test_tile_registers_sum_bytes_as_vectors_do(kind: str):
    random = np.random.default_rng(0)
    x, weight = (random.standard_normal((rows, 2048)).astype(np.float32) for rows in (77, 100))
    np.testing.assert_array_equal(multiply("amx", kind, x, weight), multiply("avx512_bf16", kind, x, weight))
