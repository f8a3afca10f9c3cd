"""Which layouts fit, best first, and why others do not."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloom.cluster import GIB, Cluster, cpu_cluster
from bloom.config import PRESETS
from bloom.fit import candidates, refusal, shortage
from bloom.layout import Layout
from bloom.memory import Run, peak_memory

BLOOM = PRESETS["176b"]
JEAN_ZAY = Cluster()
RUN_176B = Run(layout=Layout(tp=4, pp=12, dp=8), global_batch=2048, micro_batch=2, attention="megatron")


def test_the_176b_runs_layout_fits_and_is_the_fastest_of_all():
    first = candidates(BLOOM, RUN_176B, JEAN_ZAY)[0]
    assert (first.layout, first.num_gpus, first.reason) == ("4x12x8", 384, "")


def test_those_that_fit_come_first_by_time_and_the_others_by_memory():
    tried = candidates(BLOOM, RUN_176B, JEAN_ZAY)
    fitting = [one for one in tried if not one.reason]
    others = tried[len(fitting) :]
    assert all(one.reason for one in others)
    assert [one.step_seconds for one in fitting] == sorted(one.step_seconds for one in fitting)
    assert [one.memory_bytes for one in others] == sorted(one.memory_bytes for one in others)


def test_every_candidate_that_fits_is_within_memory_and_every_other_says_what_it_lacks():
    for one in candidates(BLOOM, RUN_176B, JEAN_ZAY):
        run = replace(RUN_176B, layout=Layout.parse(one.layout))
        memory = peak_memory(BLOOM, run, JEAN_ZAY)[1].total
        assert (memory <= JEAN_ZAY.usable_bytes) == (not one.reason)
        assert one.memory_bytes == memory


def test_layouts_that_ran_out_of_memory_are_refused_for_it():
    """184B at TP 4 x PP 6 x DP 16, micro-batch 2: OOM in the trials before the run (chronicles-prequel, 02-28)."""
    config = replace(BLOOM, hidden_size=12288, n_layer=100, n_head=64)
    run = replace(RUN_176B, layout=Layout(tp=4, pp=6, dp=16))
    assert "needs" in shortage(config, run, JEAN_ZAY)


def test_a_shortage_names_the_stage_the_need_and_the_remedy():
    run = replace(RUN_176B, layout=Layout(tp=8, pp=1, dp=48))
    text = shortage(BLOOM, replace(run, global_batch=48 * 2 * 20), JEAN_ZAY)
    assert text.startswith("stage 0 needs ")
    remedy = "raise tp or pp, on more GPUs, or set zero_stage=2"
    assert text.endswith(f"GiB a rank of the 64.0 usable, most of it gradients; {remedy}")


def test_a_laptop_is_a_cluster_too():
    laptop = cpu_cluster(cores=2, memory_bytes=24 * GIB)
    run = Run(layout=Layout(), global_batch=8, micro_batch=4, seq_length=512)
    assert not candidates(PRESETS["560m"], run, laptop)[0].reason
    assert candidates(BLOOM, run, laptop)[0].reason.startswith("stage 0 needs ")


def test_a_single_gpu_offers_the_one_layout():
    run = Run(layout=Layout(), global_batch=8)
    assert [one.layout for one in candidates(PRESETS["560m"], run, Cluster(num_gpus=1))] == ["1x1x1"]


def test_a_hundred_thousand_processes_are_looked_through_in_no_time():
    run = Run(layout=Layout(), global_batch=65_536 * 99_991, micro_batch=1)
    crowd = cpu_cluster(cores=2, memory_bytes=24 * GIB).shared_by(99_991)
    assert len(candidates(PRESETS["560m"], run, crowd)) == 5 * 24  # TP 1, 2, 4, 8, 16


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("3x1x1", {}, "tp=3 does not divide 112 heads; choose 1, 2, 4, 7, 8, 14, 16, 28, 56 or 112"),
        ("1x71x1", {}, "pp=71 stages cannot share 70 layers; choose 1 to 70"),
        ("8x12x8", {}, "layout 8x12x8 takes 768 GPUs of 384; lower tp, pp or dp"),
        ("16x1x1", {}, "tp=16 reaches out of a node of 8; choose at most that"),
        ("4x12x6", {}, "global_batch=2048 is no multiple of micro_batch=2 x dp=6; use 2040 or 2052"),
        ("1x1x8", {"global_batch": 3}, "global_batch=3 is no multiple of micro_batch=2 x dp=8; use 16"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_with_the_remedy(layout: str, change: dict[str, int], message: str):
    assert refusal(BLOOM, replace(RUN_176B, layout=Layout.parse(layout), **change), JEAN_ZAY) == message


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 300), st.integers(1, 4))
def test_no_candidate_is_one_that_refusal_refuses_where_the_batch_divides(
    gpus: int, per_node: int, passes: int, micro_batch: int
):
    cluster = Cluster(num_gpus=gpus, gpus_per_node=per_node)
    run = Run(layout=Layout(), global_batch=passes * micro_batch, micro_batch=micro_batch)
    for one in candidates(PRESETS["1b1"], run, cluster):
        assert refusal(PRESETS["1b1"], replace(run, layout=Layout.parse(one.layout)), cluster) == ""
