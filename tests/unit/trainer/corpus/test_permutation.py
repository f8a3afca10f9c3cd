"""Shuffling without a table."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.corpus import permutation
from services.trainer.corpus.permutation import permuted

keys = st.integers(0, 2**64 - 1)


@given(size=st.integers(1, 3000), key=keys)
@settings(deadline=None)
def test_every_item_gets_a_place_of_its_own(size, key):
    assert sorted(permuted(np.arange(size), size, key).tolist()) == list(range(size))


@given(size=st.integers(1, 2**62), key=keys, data=st.data())
@settings(deadline=None)
def test_an_item_has_the_same_place_alone_and_among_others(size, key, data):
    items = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5)))
    places = permuted(items, size, key)
    assert [int(permuted(items[i : i + 1], size, key)[0]) for i in range(len(items))] == places.tolist()
    assert ((places >= 0) & (places < size)).all()


def chi_square(size: int, num_keys: int) -> float:
    """How unevenly items 0 .. size - 1 are spread over the places, by many keys: about 1 where it is even."""
    counts = np.zeros((size, size))
    for key in range(num_keys):
        counts[np.arange(size), permuted(np.arange(size), size, key)] += 1
    expected = num_keys / size
    return float(((counts - expected) ** 2 / expected).sum() / (size - 1) ** 2)


@pytest.mark.parametrize("size", [7, 16, 40])
def test_every_place_is_equally_likely(size):
    assert 0.8 < chi_square(size, 2000) < 1.25


def test_too_few_rounds_are_noticed(monkeypatch):
    monkeypatch.setattr(permutation, "_ROUNDS", 1)
    assert chi_square(40, 2000) > 1.25


def test_neighbours_are_not_kept_together():
    places = permuted(np.arange(100_000), 100_000, key=5)
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.02
    assert (np.abs(np.diff(places)) == 1).sum() < 20  # 2 are to be expected


def test_the_order_is_this_one_for_ever():
    assert permuted(np.arange(10), 10, key=42).tolist() == [2, 7, 4, 0, 8, 3, 6, 9, 5, 1]
