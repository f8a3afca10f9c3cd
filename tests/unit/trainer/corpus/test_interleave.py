"""Which source a sample comes from: shares that hold at every prefix."""

import math
from fractions import Fraction

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.settings import ROOT
from services.trainer.corpus import interleave
from services.trainer.corpus.interleave import Interleave
from services.trainer.failure import JobFailure

weights = st.lists(st.integers(1, 400), min_size=1, max_size=12).map(lambda found: [Fraction(w) for w in found])


def furthest_off(sources: list[int], shares: list[Fraction]) -> Fraction:
    """How far, in samples, any source is from its share at any prefix; exactly."""
    period = math.lcm(*(share.denominator for share in shares))
    numbers = np.arange(1, len(sources) + 1)
    off = [
        np.abs(np.cumsum(np.array(sources) == source) * period - numbers * int(share * period)).max()
        for source, share in enumerate(shares)
    ]
    return Fraction(int(max(off)), period)


def greedy(shares: list[Fraction], count: int) -> list[int]:
    """Megatron's rule: whoever lacks most."""
    given = [0] * len(shares)
    sources = []
    for number in range(count):
        errors = [share * max(number, 1) - have for share, have in zip(shares, given, strict=True)]
        sources.append(errors.index(max(errors)))
        given[sources[-1]] += 1
    return sources


@given(weights)
@settings(deadline=None)
def test_every_prefix_has_each_source_within_one_sample_of_its_weight(found):
    order = Interleave(found)
    shares = [weight / sum(found) for weight in found]
    assert order.shares == shares
    assert furthest_off([order.at(sample)[0] for sample in range(1500)], shares) < 1


def test_the_greedy_rule_would_fail_that_test():
    shares = [Fraction(1, 2)] + [Fraction(1, 40)] * 20
    assert furthest_off(greedy(shares, 400), shares) >= 1
    assert furthest_off([Interleave(shares).at(sample)[0] for sample in range(400)], shares) < 1


@given(weights, st.integers(0, 10**12))
@settings(deadline=None)
def test_a_sample_looked_up_is_the_one_counted_to(found, start):
    order = Interleave(found)
    counts: dict[int, int] = {}
    for sample in range(start, start + 200):
        source, number = order.at(sample)
        assert number == counts.get(source, number)
        counts[source] = number + 1
        assert abs(number + 1 - (sample + 1) * order.shares[source]) < 1


def test_weights_that_no_period_holds_are_rounded_to_a_millionth(monkeypatch):
    monkeypatch.setattr(interleave, "MAX_PERIOD", 1000)
    found = [Fraction(str(weight)) for weight in (0.123456789, 0.5, 0.333333333)]
    order = Interleave(found)
    assert sum(order.shares) == 1
    for share, weight in zip(order.shares, found, strict=True):
        assert abs(share - weight / sum(found)) < Fraction(1, 1000)


def test_a_weight_too_small_to_be_seen_is_refused(monkeypatch):
    monkeypatch.setattr(interleave, "MAX_PERIOD", 1000)
    with pytest.raises(JobFailure, match="below one sample in 1,000; raise its weight, or leave it out"):
        Interleave([Fraction("0.000001"), Fraction(1)])


def test_roots_in_the_shares_that_bloom_was_trained_on():
    corpora = yaml.safe_load((ROOT / "recipes" / "blends" / "roots.yaml").read_text())["corpora"]
    found = [Fraction(str(corpus["weight"])) for corpus in corpora.values()]
    order = Interleave(found)
    assert len(corpora) == 28
    assert abs(sum(found) - 1) < Fraction(2, 100_000)
    sources = np.array([order.at(sample)[0] for sample in range(20_000)])
    counts = np.array([np.cumsum(sources == source) for source in range(28)])
    wanted = np.outer([float(share) for share in order.shares], np.arange(1, 20_001))
    assert np.abs(counts - wanted).max() < 1
