"""The learning rate's shape, and the values that BLOOM-176B's log shows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.schedule import Schedule

BLOOM_176B = Schedule(peak=6e-5, minimum=6e-6, warmup=183_105, total=200_000_000)  # in samples


@pytest.mark.parametrize(
    ("samples", "logged"),
    [
        (59_312, 1.944e-05),
        (9_841_584, 5.969e-05),
        (47_768_496, 5.279e-05),
        (71_455_664, 4.475e-05),
        (76_002_224, 4.298e-05),
        (158_692_272, 1.15e-05),
    ],
)
def test_bloom_176b_had_these_learning_rates(samples, logged):
    assert float(f"{BLOOM_176B.at(samples):.3e}") == logged


@given(st.integers(0, 50), st.integers(51, 500))
def test_it_rises_to_the_peak_and_falls_to_the_minimum(warmup, total):
    schedule = Schedule(peak=1.0, minimum=0.1, warmup=warmup, total=total)
    rates = [schedule.at(step) for step in range(1, total + 2)]
    assert max(rates) <= 1.0
    assert rates[: warmup or 1] == sorted(rates[: warmup or 1])
    assert rates[max(0, warmup - 1) :] == sorted(rates[max(0, warmup - 1) :], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
