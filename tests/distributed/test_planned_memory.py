"""The planner's memory beside what the kernel says that the trainer's ranks held."""

import dataclasses

import pytest

from benchmarks.plan_memory import CONFIG, compare
from bloom.layout import Layout


@pytest.mark.parametrize("dp", [1, pytest.param(2, marks=pytest.mark.long)])
def test_the_planned_peak_is_the_measured_one_within_15_percent(dp: int):
    # fp32, which every processor computes in: one without bf16 takes it instead.
    config = dataclasses.replace(CONFIG, layout=Layout(dp=dp), precision="fp32")
    found = compare(config)
    assert abs(found.deviation) < 0.15, found
