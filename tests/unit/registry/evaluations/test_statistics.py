"""Standard errors and p-values against scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from services.registry.evaluations.statistics import (
    Estimate,
    estimate,
    holm,
    paired,
    two_sided_t,
    unpaired,
)

P_VALUES = st.lists(st.floats(0, 1), max_size=12)


def drawn(
    seed: int, n: int = 40, *, shift: float = 0.0, equal_lengths: bool = False, spread: float = 0.4
) -> np.ndarray:
    """Texts (n, 2): bits, bytes, whose logarithms have the deviation `spread`."""
    rng = np.random.default_rng(seed)
    num_bytes = np.full(n, 100.0) if equal_lengths else np.ceil(rng.lognormal(5, spread, n))
    rates = 1.5 + shift + 0.3 * rng.standard_normal(n)
    return np.stack((rates * num_bytes, num_bytes), axis=1)


@given(statistic=st.floats(-60, 60), freedom=st.one_of(st.integers(1, 5000).map(float), st.floats(0.5, 1e6)))
def test_students_t_is_scipys(statistic: float, freedom: float):
    expected = 2 * float(stats.t.sf(abs(statistic), freedom))
    assert two_sided_t(statistic, freedom) == pytest.approx(expected, rel=1e-7, abs=1e-14)


def test_of_texts_of_one_length_the_error_is_that_of_a_mean_and_the_test_the_paired_one():
    one, base = drawn(1, equal_lengths=True), drawn(2, equal_lengths=True)
    found = estimate(one)
    assert found.value == pytest.approx(one[:, 0].mean() / 100)
    assert found.standard_error == pytest.approx(stats.sem(one[:, 0] / 100))
    significance = paired(one, base)
    assert significance is not None
    expected = stats.ttest_rel(one[:, 0] / 100, base[:, 0] / 100)
    assert significance.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    assert significance.n == 40
    assert significance.standard_error == pytest.approx(stats.sem((one[:, 0] - base[:, 0]) / 100))


def test_of_texts_of_many_lengths_the_errors_are_those_that_resampling_finds():
    one, base = drawn(3, n=300, spread=1.0), drawn(4, n=300)
    base[:, 1] = one[:, 1]
    base[:, 0] = one[:, 0] * 0.98 + 0.02 * np.random.default_rng(5).standard_normal(300) * one[:, 1]

    def ratio(bits, num_bytes, axis=-1):
        return bits.sum(axis) / num_bytes.sum(axis)

    def resampled(bits):
        options = {"paired": True, "n_resamples": 2000, "method": "basic", "rng": np.random.default_rng(6)}
        return stats.bootstrap((bits, one[:, 1]), ratio, **options).standard_error

    significance = paired(one, base)
    assert significance is not None
    assert estimate(one).standard_error == pytest.approx(resampled(one[:, 0]), rel=0.1)
    assert significance.standard_error == pytest.approx(resampled(one[:, 0] - base[:, 0]), rel=0.1)
    mean_of_rates = stats.sem(one[:, 0] / one[:, 1])  # the mistake: every text counts alike
    assert mean_of_rates != pytest.approx(resampled(one[:, 0]), rel=0.1)


def test_without_texts_the_test_is_welchs():
    one, base = drawn(7, n=25, shift=0.1, equal_lengths=True), drawn(8, n=60, equal_lengths=True)
    found = unpaired(estimate(one), estimate(base))
    assert found is not None
    expected = stats.ttest_ind(one[:, 0] / 100, base[:, 0] / 100, equal_var=False)
    assert found.test == "WELCH_T"
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)


def test_without_a_number_of_examples_the_test_is_that_of_the_normal_distribution():
    one, base = (Estimate(value=value, standard_error=error, n=None) for value, error in ((0.62, 0.03), (0.55, 0.04)))
    found = unpaired(one, base)
    assert found is not None
    assert found.test == "Z"
    assert found.p_value == pytest.approx(2 * stats.norm.sf(0.07 / 0.05))
    assert unpaired(one, Estimate(value=0.5, standard_error=None, n=100)) is None


def test_pairs_see_a_difference_that_two_errors_hide():
    base = drawn(9)
    one = base.copy()
    one[:, 0] *= 1.01
    in_pairs, apart = paired(one, base), unpaired(estimate(one), estimate(base))
    assert in_pairs is not None
    assert apart is not None
    assert in_pairs.p_value < 1e-6
    assert apart.p_value > 0.5


def test_other_texts_are_not_compared_in_pairs():
    one = drawn(10)
    other = one.copy()
    other[3, 1] += 1
    assert paired(one, other) is None
    assert paired(one, one[:-1]) is None
    assert paired(one[:1], one[:1]) is None


def test_equal_texts_do_not_differ_and_a_constant_difference_is_certain():
    one = drawn(11, equal_lengths=True)
    same, shifted = paired(one, one), paired(one + np.array((7.0, 0.0)), one)
    assert same is not None
    assert shifted is not None
    assert same.p_value == 1.0
    assert shifted.p_value < 1e-12


def test_versions_that_do_not_differ_are_called_so_in_95_of_100_cases():
    p_values = []
    for seed in range(400):
        one, base = drawn(seed, n=12), drawn(seed + 1000, n=12)
        base[:, 0] *= one[:, 1] / base[:, 1]
        base[:, 1] = one[:, 1]
        found = paired(one, base)
        assert found is not None
        p_values.append(found.p_value)
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09


@given(p_values=P_VALUES, level=st.floats(0.001, 0.999))
def test_holms_values_reject_what_his_procedure_rejects(p_values: list[float], level: float):
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    rejected = set()
    for rank, index in enumerate(order):
        if p_values[index] * (len(p_values) - rank) >= level:
            break
        rejected.add(index)
    adjusted = holm(p_values)
    assert {index for index, value in enumerate(adjusted) if value < level} == rejected
    pairs = zip(p_values, adjusted, strict=True)
    assert all(plain <= value <= 1 or math.isclose(plain, value) for plain, value in pairs)
