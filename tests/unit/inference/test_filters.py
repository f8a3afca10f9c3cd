"""Filters and draws of one row, against transformers' warpers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from services.inference import filters
from services.inference.sampling import SamplingParams

V = 1300  # more than two groups of 512, and no multiple of it


def row_of(seed: int = 0, *, scale: float = 3.0, size: int = V) -> filters.Row:
    return (scale * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def hf_probabilities(row: filters.Row, params: SamplingParams) -> np.ndarray:
    """transformers' warpers in the order in which its `generate` applies them."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        warpers.append(MinPLogitsWarper(params.min_p))
    if params.typical_p < 1:
        warpers.append(TypicalLogitsWarper(params.typical_p))
    return warpers(None, torch.from_numpy(row.copy())[None])[0].softmax(dim=-1).numpy()


def probabilities(row: filters.Row, params: SamplingParams) -> np.ndarray:
    ids, weights = filters.candidates(row, params)
    full = np.zeros(row.size, np.float32)
    full[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
    return full


def assert_equals_transformers(row: filters.Row, params: SamplingParams) -> None:
    ours, theirs = probabilities(row, params), hf_probabilities(row, params)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_array_equal(ours > 0, theirs > 0)


@pytest.mark.parametrize("size", [V, 20_000])  # the larger needs the histogram
@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 5},
        {"top_k": 700},
        {"top_p": 0.5},
        {"top_p": 0.97, "temperature": 0.7},
        {"top_k": 9, "top_p": 0.8},
        {"top_p": 0.999, "temperature": 30.0},  # nearly flat: nearly all are kept
        {"min_p": 0.1},
        {"min_p": 0.02, "top_p": 0.8, "temperature": 1.5},
        {"min_p": 1.0},
        {"typical_p": 0.5},
        {"typical_p": 0.2},
        {"typical_p": 0.9, "temperature": 2.0},
        {"top_k": 100, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.7, "temperature": 0.8},
    ],
    ids=str,
)
def test_filters_keep_exactly_the_tokens_that_transformers_keeps(settings: dict, size: int):
    for seed in range(3):
        assert_equals_transformers(row_of(seed, size=size), SamplingParams(seed=0, **settings))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    scale=st.floats(0.2, 6),
    temperature=st.floats(0.3, 3),
    top_k=st.integers(0, 60),
    top_p=st.sampled_from([1.0, 0.99, 0.9, 0.6, 0.05]),
    min_p=st.sampled_from([0.0, 0.01, 0.2]),
    typical_p=st.sampled_from([1.0, 0.95, 0.5, 0.1]),
)
def test_any_combination_of_filters_gives_transformers_probabilities(seed: int, scale: float, **sampling):
    assert_equals_transformers(row_of(seed, scale=scale), SamplingParams(seed=0, **sampling))


def test_a_filter_in_another_order_would_be_noticed():
    row, params = row_of(scale=1.5), SamplingParams(seed=0, top_k=20, top_p=0.5)
    wrong = LogitsProcessorList([TopPLogitsWarper(0.5), TopKLogitsWarper(20)])
    swapped = wrong(None, torch.from_numpy(row)[None])[0].softmax(dim=-1).numpy()
    assert ((probabilities(row, params) > 0) != (swapped > 0)).any()


@pytest.mark.parametrize("planted", ["one more of top-k", "less mass", "no temperature", "typical around the peak"])
def test_a_planted_error_is_noticed(planted: str, monkeypatch: pytest.MonkeyPatch):
    kth_largest, nearest, weights = filters.kth_largest, filters._nearest, filters._weights
    name, wrong = {
        "one more of top-k": ("kth_largest", lambda values, k: kth_largest(values, k + 1)),
        "less mass": ("_nearest", lambda logits, w, centre, mass: nearest(logits, w, centre, 0.9 * mass)),
        "no temperature": ("_weights", lambda logits, peak, _: weights(logits, peak, np.float32(1))),
        "typical around the peak": ("_mean", lambda logits, peak, w: float(peak)),
    }[planted]
    row = row_of(scale=0.5)  # flat enough for every filter to cut
    params = SamplingParams(seed=0, top_k=50, top_p=0.97, typical_p=0.8, temperature=0.8)
    assert_equals_transformers(row, params)
    monkeypatch.setattr(filters, name, wrong)
    with pytest.raises(AssertionError):
        assert_equals_transformers(row, params)


@pytest.mark.parametrize("settings", [{"typical_p": 0.3}, {"top_p": 0.7}, {"top_k": 40, "typical_p": 0.9}])
def test_banned_ids_are_never_candidates(settings: dict):
    row = row_of()
    row[row > 0] = -np.inf
    assert_equals_transformers(row, SamplingParams(seed=0, **settings))


def test_a_typical_set_that_leaves_out_the_likeliest_token_is_found():
    """One token with 40 % and a flat rest: the rest is typical, and the set does not reach as far below as above."""
    row = np.zeros(V, np.float32)
    row[7] = np.log(0.4 / 0.6 * (V - 1))
    kept = probabilities(row, SamplingParams(seed=0, typical_p=0.5)) > 0
    assert kept.sum() == V - 1
    assert not kept[7]


def test_ties_are_kept_whole():
    row = np.repeat(np.arange(5, dtype=np.float32), V // 5)
    kept = probabilities(row, SamplingParams(seed=0, top_k=3)) > 0
    assert kept.sum() == V // 5


def test_a_tiny_temperature_is_greedy_and_not_nan():
    row = row_of()
    for filters_used in ({}, {"top_p": 0.9}, {"typical_p": 0.9}, {"min_p": 0.5}):
        params = SamplingParams(seed=0, temperature=1e-38, **filters_used)
        assert filters.draw(row, params, 0.7) == row.argmax()


@given(seed=st.integers(0, 10_000), size=st.integers(1, 5000), k=st.integers(1, 5000), ties=st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_kth_largest_is_that_of_a_sort(seed: int, size: int, k: int, ties: bool):
    values = row_of(seed, size=size)
    if ties:
        values = values.round()
    k = min(k, size)
    assert filters.kth_largest(values, k) == np.sort(values)[-k]


def test_the_largest_come_in_order_with_the_lower_id_first_among_equals():
    row = np.zeros(V, np.float32)
    row[[9, 5, 1200]] = 4, 4, 7
    assert filters.largest(row, 4).tolist() == [1200, 5, 9, 0]


@given(seed=st.integers(0, 10_000), size=st.integers(1, 30_000), mass=st.floats(0.001, 0.999), ties=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_mass_threshold_is_that_of_a_sort(seed: int, size: int, mass: float, ties: bool):
    rng = np.random.default_rng(seed)
    keys = rng.exponential(size=size).astype(np.float32)
    if ties:
        keys = keys.round(1)
    if seed % 3 == 0:
        keys[0] = 1e9  # nearly all in one bucket
    weights = rng.exponential(size=size).astype(np.float32)
    target = mass * weights.sum(dtype=np.float64)
    threshold = filters._mass_threshold(keys, weights, target)
    slack = 1e-9 * weights.sum(dtype=np.float64)
    assert threshold in keys
    assert weights[keys <= threshold].sum(dtype=np.float64) >= target - slack
    assert weights[keys < threshold].sum(dtype=np.float64) <= target + slack


def test_the_log_normalizer_is_logsumexp_also_of_logits_in_the_hundreds():
    for shift in (0.0, 400.0, -400.0):
        row = row_of(size=20_000) + np.float32(shift)
        expected = torch.from_numpy(row).double().logsumexp(dim=0).item()
        assert filters.log_normalizer(row) == pytest.approx(expected, abs=1e-5)


def test_tokens_are_drawn_as_often_as_their_probability_says():
    row = row_of(scale=1.5)
    expected = torch.from_numpy(row).double().softmax(dim=-1).numpy()
    num = 20_000
    uniforms = np.random.default_rng(1).random(num)
    counts = np.bincount([filters.draw(row, SamplingParams(seed=0), u) for u in uniforms], minlength=V)
    chi_squared = ((counts - num * expected) ** 2 / (num * expected)).sum()
    assert abs(chi_squared - V) < 5 * (2 * V) ** 0.5  # mean and five standard deviations


def test_the_draw_of_two_levels_equals_the_plain_inversion():
    row = row_of()
    weights = np.exp(row - row.max())
    cumulative = weights.cumsum(dtype=np.float64)
    uniforms = np.random.default_rng(3).random(2000)
    expected = np.searchsorted(cumulative, uniforms * cumulative[-1], side="right")
    drawn = np.array([filters._invert(weights, u) for u in uniforms])
    assert (drawn != expected).mean() < 0.01  # fp32 sums of groups move a few borders by a hair
    assert np.abs(drawn - expected).max() <= 1


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("ids", [(0, 1, 2), (510, 511, 512), (700, 701, 702), (1297, 1298, 1299)])
def test_the_ends_of_the_distribution_give_tokens_with_weight(share: float, ids: tuple[int, ...]):
    weights = np.zeros(V, np.float32)
    weights[list(ids)] = 1.0
    assert filters._invert(weights, share) == (ids[0] if share == 0 else ids[-1])


def test_a_filtered_draw_inverts_in_vocabulary_order():
    row = np.full(V, -np.inf, np.float32)
    row[[3, 800, 1299]] = np.log([0.2, 0.5, 0.3]).astype(np.float32)
    params = SamplingParams(seed=0, top_k=3)
    assert [filters.draw(row, params, u) for u in (0.0, 0.19, 0.21, 0.69, 0.71, 0.999)] == [3, 3, 800, 800, 1299, 1299]
