"""`anthesis plan` in this process: what it prints, as tables and as JSON, and what it refuses."""

import json
from pathlib import Path

import pytest
from anthesis.cli import app
from typer.testing import CliRunner

PUBLISHED = (
    "176b",
    "--attention",
    "megatron",
    "--no-sequence-parallel",
    "--ramp",
    "192,16,9765625",
    "--evaluation-s",
    "720",
)


def run(*args: str) -> str:
    result = CliRunner().invoke(app, ["plan", *args])
    if result.exception:
        raise result.exception
    return result.output


def plan(*args: str) -> dict:
    return json.loads(run(*args, "--json"))


def refusal(*args: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the caller reads it)
        run(*args)
    return str(caught.value)


def test_the_published_run_is_planned_with_its_layout_found():
    figures = plan(*PUBLISHED, "--incident-hours", "42.3")
    assert figures["run"]["layout"] == {"tp": 4, "pp": 12, "dp": 8}
    assert figures["num_steps"] == 95_151
    assert figures["checkpoint_bytes"] == 2_467_461_799_936
    assert figures["step_seconds"] == pytest.approx(104.7, rel=0.1)
    assert figures["gpu_hours"] == pytest.approx(1_082_990, rel=0.1)


def test_the_same_constants_give_the_step_of_16_sequences():
    figures = plan(*PUBLISHED[:4], "--layout", "4x12x8", "--global-batch", "16")
    assert figures["step_seconds"] == pytest.approx(15.2, rel=0.1)


def test_the_tables_name_every_figure_kind_term_and_layout():
    text = run("176b", "--layouts", "2")
    named = (
        "checkpoint with optimizer\t2.5 TB",
        "layout\t4x12x8 (TP x PP x DP), 384 GPUs",
        "model FLOP/s per GPU",
        "hardware FLOP/s per GPU",
        "pure compute",
        "with ramp and pauses",
        "kWh",
        "kg CO2",
    )
    kinds = ("weights", "gradients", "optimizer", "activations", "loss", "runtime")
    terms = ("matmul", "tensor parallel", "pipeline", "bubble", "gradient reduce", "weight gather")
    for words in (*named, *(f"\n{name}\t" for name in (*kinds, *terms))):
        assert words in text
    assert text.count("\tyes\n") == 3  # the run's own row, and two layouts
    assert text.count("a rank of the 64.0 usable") == 2


def test_all_layouts_are_in_the_json_with_their_reasons():
    layouts = plan("176b")["layouts"]
    assert {one["reason"] == "" for one in layouts} == {True, False}
    assert layouts[0]["layout"] == "4x12x8"


def test_a_cluster_is_described_by_its_figures():
    figures = plan(
        "560m", "--gpus", "16", "--gpus-per-node", "2", "--gpu-memory-gib", "40", "--peak-tflops", "100",
        "--efficiency", "0.5", "--link-gb-s", "10", "--network-gb-s", "3",
    )["cluster"]  # fmt: skip
    assert (figures["num_gpus"], figures["gpus_per_node"], figures["memory_bytes"]) == (16, 2, 40 << 30)
    assert (figures["flops_16bit"], figures["matmul_efficiency"]) == (100e12, 0.5)
    assert (figures["link_bandwidth"], figures["network_bandwidth"]) == (10e9, 3e9)


def test_a_machine_without_gpus_is_a_cluster():
    figures = plan("560m", "--cluster", "laptop", "--global-batch", "8", "--sequence-length", "512")
    assert not figures["cluster"]["has_gpus"]
    assert figures["shortage"] == ""


def test_more_gpus_take_less_time_and_a_faster_one_less_energy():
    few, many = (plan("7b1", "--gpus", gpus) for gpus in ("64", "256"))
    fast = plan("7b1", "--gpus", "64", "--efficiency", "0.9")
    assert many["seconds"] < few["seconds"]
    assert fast["energy_kwh"] < few["energy_kwh"]


def test_a_config_json_is_planned(tmp_path: Path):
    shape = {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 1000}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    assert plan(str(tmp_path), "--global-batch", "384", "--tokens", "1000000")["parameters"] > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("5m",), "no BLOOM preset '5m'; choose one of 560m"),
        (("560m", "--cluster", "moon"), "no cluster 'moon'; choose one of jean-zay, h100, laptop, this-machine"),
        (("560m", "--precision", "fp8"), "precision='fp8' is not known; choose bf16, fp16, fp32"),
        (("560m", "--attention", "flash"), "attention='flash' is not known; choose dense, megatron or fused"),
        (("560m", "--layout", "2x2"), "layout '2x2' is not TPxPPxDP; write three counts, for example 4x12x8"),
        (("560m", "--layout", "3x1x1"), "tp=3 does not divide 16 heads; choose 1, 2, 4, 8 or 16"),
        (("560m", "--layout", "1x1x3"), "global_batch=256 is no multiple of micro_batch=1 x dp=3; use 255 or 258"),
        (("560m", "--ramp", "192"), "batch ramp '192' is not START,INCREMENT,SAMPLES"),
        (("560m", "--ramp", "10,16,100"), "steps of 16 from 10 miss the full batch 256; start at 16"),
        (("560m", "--efficiency", "2"), "matmul_efficiency=2.0 is no share"),
        (("560m", "--checkpoint-hours", "0"), "checkpoint_every_s=0.0 never passes"),
        (("176b", "--cluster", "laptop"), "no layout fits this cluster; the nearest is 2x1x1: stage 0 needs "),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(args: tuple[str, ...], message: str):
    assert message in refusal(*args)
