import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.demo.baselines import WittenBell, lzma_bits


@given(text=st.binary(max_size=60), history=st.binary(max_size=6), order=st.integers(1, 5))
def test_probabilities_sum_to_one_after_any_history(text: bytes, history: bytes, order: int):
    model: WittenBell[int] = WittenBell(order, alphabet_size=256)
    model.train(text)
    assert math.fsum(model.probability(symbol, history) for symbol in range(256)) == pytest.approx(1.0)


def test_a_bigram_is_what_the_formula_says():
    model: WittenBell[str] = WittenBell(2, alphabet_size=4)
    model.train("abab")
    unigram_b = (2 + 2 * 0.25) / (4 + 2)  # twice b, two kinds of symbols, four symbols seen
    assert model.probability("b", "") == pytest.approx(unigram_b)
    assert model.probability("b", "xa") == pytest.approx((2 + 1 * unigram_b) / (2 + 1))  # b followed both a's
    assert model.probability("b", "z") == pytest.approx(unigram_b)  # z was never seen


def test_an_untrained_model_charges_the_uniform_distribution():
    assert WittenBell(5, alphabet_size=256).bits(b"four", b"") == pytest.approx(4 * 8)


def test_bits_count_the_text_and_not_its_context():
    model: WittenBell[str] = WittenBell(3, alphabet_size=100)
    model.train("the cat sat on the mat")
    whole = model.bits("the mat", "")
    assert model.bits("the ", "") + model.bits("mat", "the ") == pytest.approx(whole)


def test_an_order_of_five_looks_at_no_more_than_four_symbols():
    model: WittenBell[str] = WittenBell(5, alphabet_size=100)
    model.train("abcdefgh" * 3)
    assert model.bits("f", "abcde") == model.bits("f", "zbcde")


def test_priming_lzma_with_the_same_text_makes_it_nearly_free():
    text = random.Random(0).randbytes(2_000)
    assert lzma_bits(text) >= 8 * 2_000
    assert 0 < lzma_bits(text, prime=text) < 0.05 * lzma_bits(text)


def test_lzma_of_nothing_is_nothing():
    assert lzma_bits(b"") == 0
