"""Figures that BLOOM's own logs and model cards give."""

import dataclasses
import json
import subprocess
import sys

import pytest

from bloom.config import PRESETS, BloomConfig
from bloom.plan import Machine, flops_per_token, plan

BLOOM = BloomConfig.preset("176b")


@pytest.mark.parametrize(("seconds", "tflops"), [(104.7, 149.77), (105.22, 149.02), (106.46, 147.29), (111.0, 141.26)])
def test_tflops_per_gpu_are_those_that_the_176b_run_logged(seconds: float, tflops: float):
    flops = flops_per_token(BLOOM, seq_length=2048, recompute=True) * 2048 * 2048
    assert flops / seconds / 384 / 1e12 == pytest.approx(tflops, rel=1e-4)


def test_model_flops_of_176b_are_36_percent_of_an_a100():
    flops = flops_per_token(BLOOM, seq_length=2048) * 2048 * 2048
    assert flops / 104.7 / 384 / 312e12 == pytest.approx(0.360, abs=5e-4)
    assert plan(BLOOM).flops_per_token_6n * 2048 * 2048 / 104.7 / 384 / 1e12 == pytest.approx(110.3, abs=0.1)


@pytest.mark.parametrize("name", PRESETS)
def test_bytes_are_those_of_the_published_checkpoints(name: str):
    checkpoint_bytes = {
        "560m": 7_829_004_288,
        "1b1": 14_914_400_256,
        "1b7": 24_113_725_440,
        "3b": 42_035_804_160,
        "7b1": 98_966_224_896,
        "176b": 2_467_461_799_936,
    }
    figures = plan(BloomConfig.preset(name))
    assert figures.checkpoint_bytes == checkpoint_bytes[name]
    assert figures.weight_bytes["bf16"] * 7 == checkpoint_bytes[name]
    assert figures.training_state_bytes == 16 * figures.parameters


def test_the_carbon_rule_gives_the_model_cards_figures():
    """1,082,990 GPU hours, 433,196 kWh, 24.69 t."""
    figures = plan(BLOOM)
    assert figures.energy_kwh / figures.gpu_hours == pytest.approx(433_196 / 1_082_990)
    assert figures.co2_kg / figures.gpu_hours * 1_082_990 == pytest.approx(24_690, abs=5)


def test_the_planned_time_of_bloom_is_the_time_it_took_without_its_failures():
    assert 974_000 < plan(BLOOM).gpu_hours < 1_082_990


def test_kv_cache_bytes_count_a_key_and_a_value_in_every_layer():
    assert plan(BloomConfig.preset("560m")).kv_bytes_per_token["bf16"] == 2 * 24 * 1024 * 2


def test_zero_1_shares_out_the_optimizer_alone():
    config = BloomConfig.preset("560m")
    n = config.parameters
    assert plan(config, machine=Machine(num_gpus=1)).training_state_bytes_per_gpu == 16 * n
    assert plan(config, machine=Machine(num_gpus=4)).training_state_bytes_per_gpu == 4 * n + 3 * n


def test_twice_the_gpus_take_half_the_time_and_the_same_energy():
    one, two = (plan(BLOOM, tokens=10**9, machine=Machine(num_gpus=g)) for g in (1, 2))
    assert two.seconds == pytest.approx(one.seconds / 2)
    assert two.energy_kwh == pytest.approx(one.energy_kwh)


def test_a_plan_is_json():
    assert json.loads(json.dumps(dataclasses.asdict(plan(BLOOM))))["parameters"] == 176_247_271_424


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Machine(num_gpus=0), "num_gpus=0"),
        (lambda: Machine(mfu=1.5), r"mfu=1\.5"),
        (lambda: Machine(peak_flops=0), "peak_flops=0"),
        (lambda: Machine(gpu_kw=-1), "gpu_kw=-1"),
        (lambda: plan(BLOOM, tokens=-1), "tokens=-1"),
        (lambda: plan(BLOOM, seq_length=0), "seq_length=0"),
    ],
)
def test_impossible_inputs_are_named(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_torch_free_files_import_no_torch():
    code = (
        "import sys, bloom.config, bloom.alibi, bloom.plan, bloom.tensors, bloom.checkpoint;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'safetensors')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
