"""The batch ramp of BLOOM-176B to the sample, and what every ramp obeys."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloom.batch_ramp import BatchRamp, Plateau

RAMP_176B = BatchRamp(start=192, increment=16, samples=9_765_625, full=2048)
CONSUMED = {12_658: 9_765_808, 12_695: 9_841_584, 85_376: 158_692_272}  # iteration -> samples, in the run's logs


@st.composite
def ramps(draw) -> BatchRamp:
    start, increment = draw(st.integers(1, 40)), draw(st.integers(1, 20))
    full = start + increment * draw(st.integers(0, 12))
    return BatchRamp(start=start, increment=increment, samples=draw(st.integers(0, 3000)), full=full)


def megatrons_batch(ramp: BatchRamp, consumed: int) -> int:
    """Megatron-DeepSpeed's RampupBatchsizeNumMicroBatches.update, as it is written there."""
    if consumed > ramp.samples or ramp.start == ramp.full or ramp.samples == 0:
        return ramp.full
    samples_per_increment = ramp.samples / ((ramp.full - ramp.start) // ramp.increment)
    return ramp.start + int(consumed / samples_per_increment) * ramp.increment


def follows_the_logs(ramp: BatchRamp) -> bool:
    return all(ramp.consumed_after(step) == samples for step, samples in CONSUMED.items())


def test_the_176b_ramp_is_full_after_12658_steps_and_9765808_samples():
    plateaus = list(RAMP_176B.plateaus())
    assert sum(plateau.steps for plateau in plateaus) == 12_658
    assert sum(plateau.steps * plateau.batch for plateau in plateaus) == 9_765_808
    assert plateaus[0] == Plateau(192, 439)
    assert plateaus[-1].batch == 2032
    assert RAMP_176B.batch_at(9_765_808) == 2048


def test_the_176b_run_had_seen_these_samples_at_these_iterations():
    assert follows_the_logs(RAMP_176B)
    assert [RAMP_176B.num_steps(samples) for samples in CONSUMED.values()] == list(CONSUMED)


def test_220_million_samples_are_115311_iterations():
    assert RAMP_176B.num_steps(220_000_000) == 115_311


@pytest.mark.parametrize("change", [{"start": 208}, {"increment": 32}, {"samples": 9_765_825}, {"full": 2064}])
def test_another_ramp_does_not_follow_the_logs(change: dict[str, int]):
    assert not follows_the_logs(replace(RAMP_176B, **change))


def test_a_ramp_written_as_megatrons_option_is_read():
    assert BatchRamp.parse("192,16,9765625", 2048) == RAMP_176B


@settings(deadline=None, derandomize=True)
@given(ramps(), st.integers(0, 4000))
def test_a_batch_is_megatrons_but_for_its_rounding(ramp: BatchRamp, consumed: int):
    """Megatron divides in floating point, which may fall just short of a whole number of increments."""
    ours, theirs = ramp.batch_at(consumed), megatrons_batch(ramp, consumed)
    at_a_rise = ramp.samples and consumed * ramp.num_increments % ramp.samples == 0
    assert ours == theirs or (at_a_rise and abs(ours - theirs) == ramp.increment)


@settings(deadline=None, derandomize=True)
@given(ramps())
def test_plateaus_are_what_step_by_step_gives(ramp: BatchRamp):
    consumed, batches = 0, []
    while (batch := ramp.batch_at(consumed)) < ramp.full:
        batches.append(batch)
        consumed += batch
    grouped = [Plateau(batch, len(list(group))) for batch, group in itertools.groupby(batches)]
    assert list(ramp.plateaus()) == grouped


@settings(deadline=None, derandomize=True)
@given(ramps())
def test_a_batch_never_shrinks(ramp: BatchRamp):
    batches = [ramp.batch_at(consumed) for consumed in range(0, ramp.samples + 2, 7)]
    assert batches == sorted(batches)
    assert ramp.batch_at(ramp.samples + 1) == ramp.full


@settings(deadline=None, derandomize=True)
@given(ramps(), st.integers(0, 5000))
def test_whole_steps_fit_into_the_samples_and_one_more_does_not(ramp: BatchRamp, samples: int):
    steps = ramp.num_steps(samples)
    assert ramp.consumed_after(steps) <= samples < ramp.consumed_after(steps + 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BatchRamp(start=0, increment=16, samples=10, full=32), "start=0 .*at least 1"),
        (lambda: BatchRamp(start=16, increment=0, samples=10, full=32), "increment=0 .*at least 1"),
        (lambda: BatchRamp(start=16, increment=16, samples=-1, full=32), "samples=-1 .*0 or more"),
        (lambda: BatchRamp(start=64, increment=16, samples=10, full=32), "start=64 is above the full batch 32"),
        (lambda: BatchRamp(start=10, increment=16, samples=10, full=64), "steps of 16 from 10 miss .* 64; start at 16"),
        (lambda: BatchRamp.parse("192,16", 2048), "'192,16' is not START,INCREMENT,SAMPLES; write for example"),
    ],
)
def test_a_ramp_that_does_not_arrive_is_refused_with_the_remedy(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
