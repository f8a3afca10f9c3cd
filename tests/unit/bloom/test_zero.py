"""What replicas divide: ZeRO's published table, what is refused, and what offloading moves."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloom.cluster import Cluster, named_cluster
from bloom.config import PRESETS
from bloom.fit import refusal
from bloom.layout import Layout
from bloom.memory import BYTES_PER_PARAMETER, Run, divided, peak_memory
from bloom.step_time import step_time
from bloom.zero import Zero

# Rajbhandari et al. 2020, table 1: GB of model states of a device, mixed precision with Adam, by DP and stage.
TABLE_1 = {
    (7.5e9, 1): (120, 120, 120),
    (7.5e9, 4): (52.5, 41.3, 30),
    (7.5e9, 16): (35.6, 21.6, 7.5),
    (7.5e9, 64): (31.4, 16.6, 1.88),
    (7.5e9, 256): (30.4, 15.4, 0.47),
    (7.5e9, 1024): (30.1, 15.1, 0.12),
    (128e9, 1): (2048, 2048, 2048),
    (128e9, 4): (896, 704, 512),
    (128e9, 16): (608, 368, 128),
    (128e9, 64): (536, 284, 32),
}
BLOOM = PRESETS["7b1"]
RUN = Run(layout=Layout(dp=64), global_batch=512, precision="fp16")


@pytest.mark.parametrize(("model", "row"), TABLE_1.items())
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stages_bytes_are_those_of_zeros_table_1(model, row, stage):
    parameters, dp = model
    found = divided(BYTES_PER_PARAMETER["fp16"], int(parameters), dp, stage)
    gigabytes = (found.weights + found.gradients + found.optimizer) / 1e9
    assert gigabytes == pytest.approx(row[stage - 1], rel=0.025)  # the table rounds to three digits


@settings(derandomize=True, deadline=None)
@given(
    dp=st.sampled_from([2, 8, 64]),
    precision=st.sampled_from(["bf16", "fp16", "fp32"]),
    offload=st.sampled_from(["", "optimizer"]),
)
def test_a_higher_stage_never_needs_more_of_a_large_model(dp, precision, offload):
    base = replace(RUN, layout=Layout(dp=dp), precision=precision)
    totals = [
        peak_memory(BLOOM, replace(base, zero=Zero(stage, offload)), Cluster())[1].total  # type: ignore[arg-type]
        for stage in (1, 2, 3)
    ]
    assert totals == sorted(totals, reverse=True)


def test_offloading_moves_the_optimizer_and_then_the_weights_to_the_host():
    kept, optimizer, parameters = (
        peak_memory(BLOOM, replace(RUN, zero=zero), Cluster())[1]
        for zero in (Zero(3), Zero(3, "optimizer"), Zero(3, "parameters"))
    )
    assert kept.host == 0
    assert optimizer.optimizer == 0
    assert optimizer.host > kept.optimizer
    own_weights = 2 * -(-BLOOM.parameters // 64)
    assert parameters.weights == optimizer.weights - own_weights
    assert parameters.host == optimizer.host + own_weights


def test_where_there_is_one_memory_offloading_saves_none_of_it():
    machine = named_cluster("this-machine")
    run = Run(layout=Layout(dp=2), global_batch=8, precision="fp32", zero=Zero(2))
    _, kept = peak_memory(PRESETS["560m"], run, machine)
    _, offloaded = peak_memory(PRESETS["560m"], replace(run, zero=Zero(2, "optimizer")), machine)
    assert offloaded == kept


def test_stage_3_gathers_weights_for_every_pass_of_every_micro_batch():
    one, three = (step_time(BLOOM, replace(RUN, zero=Zero(stage)), Cluster()) for stage in (1, 3))
    assert three.weight_gather == pytest.approx(8 * 3 * one.weight_gather)
    assert three.gradient_reduce == pytest.approx(8 / 2 * one.gradient_reduce)


@pytest.mark.parametrize(
    ("stage", "offload", "says"),
    [
        (4, "", "zero_stage=4 is not known; choose 1, 2 or 3"),
        (1, "disk", "offload='disk' is not known; choose optimizer or parameters, or nothing"),
        (2, "parameters", "zero_stage=2: ranks keep whole weights; set zero_stage=3, or offload=optimizer"),
    ],
)
def test_what_is_no_stage_is_refused(stage, offload, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        Zero(stage, offload)


@pytest.mark.parametrize(
    ("zero", "layout", "optimizer", "says"),
    [
        (Zero(2), Layout(pp=2, dp=2), "adamw", "zero_stage=2 with layout 1x2x2: stages need zero_stage=1"),
        (Zero(1, "optimizer"), Layout(pp=2), "adamw", "offload=optimizer with layout 1x2x1: stages need"),
        (Zero(3), Layout(dp=2), "muon", "zero_stage=3 with muon, which needs whole matrices; use adamw"),
        (Zero(2, "optimizer"), Layout(dp=2), "muon", "offload=optimizer with muon"),
    ],
)
def test_what_cannot_go_together_is_refused_with_the_remedy(zero, layout, optimizer, says):
    assert says in zero.refusal(layout, optimizer)


def test_what_can_go_together_is_not():
    assert Zero().refusal(Layout(tp=2, pp=2, dp=2), "adamw") == ""
    assert Zero(2).refusal(Layout(dp=2), "muon") == ""
    assert Zero(3, "parameters").refusal(Layout(tp=2, dp=2), "adamw") == ""


def test_the_planner_refuses_stages_with_zero_2():
    run = Run(layout=Layout(pp=2), global_batch=8, zero=Zero(2))
    assert "use 1x1x2" in refusal(BLOOM, run, Cluster())
