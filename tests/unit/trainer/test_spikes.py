"""When a loss is a spike, and what a resumed run knows of the losses before."""

import json
import math
import random
from itertools import islice

import pytest

from services.trainer.spikes import WINDOW, SpikeDetector, not_finite, recent_losses


def noisy_losses(seed: int = 0):
    """Around 3 with a standard deviation of 0.1."""
    rng = random.Random(seed)
    while True:
        yield rng.gauss(3.0, 0.1)


def after_window(deviations: float = 7.0) -> SpikeDetector:
    return SpikeDetector(deviations, islice(noisy_losses(), WINDOW))


def test_noise_is_no_spike():
    detector = SpikeDetector(7.0)
    assert [found for loss in islice(noisy_losses(1), 5000) if (found := detector.spike(loss))] == []


@pytest.mark.parametrize(("loss", "is_spike"), [(3.5, False), (4.2, True), (1.0, False), (math.inf, True)])
def test_a_loss_seven_deviations_above_the_mean_is_a_spike_and_one_below_is_none(loss, is_spike):
    assert bool(after_window().spike(loss)) == is_spike


def test_a_spike_says_how_far_it_leaps():
    detector = SpikeDetector(7.0, [2.0, 4.0] * (WINDOW // 2))
    assert detector.spike(13.0) == "loss 13 is 10.0 standard deviations above 3, the mean of 64 steps"


def test_the_threshold_is_the_jobs():
    assert after_window(deviations=3.0).spike(3.5)
    assert not after_window(deviations=20.0).spike(4.2)


def test_nothing_is_a_spike_before_there_is_a_window_to_compare_with():
    detector = SpikeDetector(7.0, islice(noisy_losses(), WINDOW - 1))
    assert not detector.spike(100.0)


def test_a_falling_loss_is_no_spike():
    detector = SpikeDetector(7.0)
    assert not any(detector.spike(10.0 * 0.999**step) for step in range(3000))


def test_a_rise_after_equal_losses_is_a_spike_and_the_same_loss_is_none():
    assert not SpikeDetector(7.0, [1.0] * WINDOW).spike(1.0)
    assert "inf standard deviations" in SpikeDetector(7.0, [1.0] * WINDOW).spike(1.1)


@pytest.mark.parametrize(
    ("loss", "grad_norm"), [(math.nan, 1.0), (1.0, math.nan), (1.0, math.inf), (-math.inf, 1.0), (1.0, -1.0)]
)
def test_what_is_no_number_is_named(loss, grad_norm):
    assert not_finite(loss, grad_norm) == f"loss {loss}, gradient norm {grad_norm}"
    assert not not_finite(1.0, 1.0)


def test_a_resumed_run_knows_the_losses_that_still_hold(tmp_path):
    path = tmp_path / "progress.jsonl"
    assert recent_losses(path, 5) == []
    steps = [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (3, 0.33), (4, 0.44)]  # gone back to step 2, on other samples
    lines = [json.dumps({"progress": {"step": step, "loss": loss}}) for step, loss in steps]
    path.write_text("\n".join(["", *lines[:2], '{"message": "hm"}', *lines[2:], '{"progress": {"step": 5, "lo']))
    assert recent_losses(path, 4) == [0.1, 0.2, 0.33, 0.44]
    assert recent_losses(path, 3) == [0.1, 0.2, 0.33]


def test_no_more_than_a_window_is_kept(tmp_path):
    path = tmp_path / "progress.jsonl"
    path.write_text("".join(json.dumps({"progress": {"step": step, "loss": step}}) + "\n" for step in range(1, 101)))
    assert recent_losses(path, 90) == list(range(91 - WINDOW, 91))
