"""The planner's memory beside what the kernel says that the trainer's ranks held."""

import dataclasses

import pytest

from benchmarks.plan_memory import CONFIG, compare
from bloom.layout import Layout


@pytest.mark.parametrize(
    "layout", ["1x1x1", *(pytest.param(layout, marks=pytest.mark.long) for layout in ("1x1x2", "2x1x1", "1x2x1"))]
)
def test_the_planned_peak_is_the_measured_one_within_15_percent(layout: str):
    # fp32, which every processor computes in: one without bf16 takes it instead.
    config = dataclasses.replace(CONFIG, layout=Layout.parse(layout), precision="fp32")
    found = compare(config)
    assert abs(found.deviation) < 0.15, found


@pytest.mark.long
@pytest.mark.parametrize("stage", [2, 3])
def test_what_replicas_divide_is_planned_as_measured(stage: int):
    config = dataclasses.replace(CONFIG, layout=Layout(dp=2), precision="fp32", zero_stage=stage)
    found = compare(config)
    assert abs(found.deviation) < 0.15, found
