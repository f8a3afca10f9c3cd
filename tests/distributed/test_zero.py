"""ZeRO's stages against one loop of transformers and PyTorch's AdamW, and checkpoints that go from stage to stage."""

import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import load_file

from bloom.layout import Layout
from services.trainer.config import RunSpec, TrainConfig
from services.trainer.folder import JobFolder
from tests.distributed.test_layouts_equal_transformers import (
    config_of,
    greatest_difference,
    losses_and_norms,
    make_fine_tune,
    transformers_run,
    without_key_bias,
)
from tests.support.training import multitask_rows, progress, run_stages


def check(folder: JobFolder, config: TrainConfig) -> None:
    want, weights = transformers_run(folder, config)
    loss, norm = greatest_difference(losses_and_norms(progress(folder)), want)
    assert loss < 1e-5
    assert norm < 1e-4
    exported = load_file(folder.export / "model.safetensors")
    assert set(exported) == set(weights)
    for name, tensor in weights.items():
        torch.testing.assert_close(*map(without_key_bias, (name, name), (exported[name], tensor)), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("1x1x2", {"zero_stage": 2, "offload": "optimizer"}),
        pytest.param("1x1x2", {"zero_stage": 2}, marks=pytest.mark.long),
        pytest.param("1x1x2", {"offload": "optimizer"}, marks=pytest.mark.long),
        pytest.param("1x1x2", {"zero_stage": 3, "offload": "parameters"}, marks=pytest.mark.long),
        pytest.param("2x1x2", {"zero_stage": 3}, marks=pytest.mark.long),
        pytest.param("1x1x4", {"zero_stage": 3, "recompute": True}, marks=pytest.mark.long),
    ],
)
def test_a_stage_gives_the_losses_gradient_norms_and_weights_of_transformers(tmp_path, layout, options):
    config = config_of(layout, **options)
    check(run_stages(make_fine_tune(tmp_path, config)), config)


def go_on(spec: RunSpec, folder: JobFolder, step: int, config: TrainConfig) -> list[float]:
    """The losses of a new attempt with `config`, from the checkpoint of `step`, as after a kill before the next one."""
    for later in sorted(folder.checkpoints.glob("step-*")):
        if int(later.name.removeprefix("step-")) > step:
            shutil.rmtree(later)
    folder.progress.unlink()
    steps = progress(run_stages(dataclasses.replace(spec, attempt=2, fencing_token=2, config=config)))
    assert steps[0].step == step + 1
    return [found.loss for found in steps]


def distance(resumed: list[float], whole: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(resumed, whole[-len(resumed) :], strict=True))


@pytest.mark.long
def test_stage_3_equals_transformers_and_a_run_goes_on_from_its_checkpoint_in_stage_1_and_back(tmp_path):
    config = config_of("1x1x2", zero_stage=3)
    spec = make_fine_tune(tmp_path, config)
    folder = run_stages(spec)
    check(folder, config)
    whole = [step.loss for step in progress(folder)]
    in_stage_1 = go_on(spec, folder, 10, config_of("1x1x2", checkpoint_every_steps=8))
    assert distance(in_stage_1, whole) < 1e-4
    assert distance(go_on(spec, folder, 16, config), whole) < 1e-4


@pytest.mark.long
def test_a_batch_that_grows_goes_with_stage_3(tmp_path):
    config = config_of("1x1x2", zero_stage=3, batch_ramp="2,2,40")
    check(run_stages(make_fine_tune(tmp_path, config)), config)


@pytest.mark.long
def test_three_replicas_whose_parts_are_padded_go_on_to_the_last_bit(tmp_path):
    config = dataclasses.replace(config_of("1x1x2"), layout=Layout(dp=3), zero_stage=3, gradient_accumulation=2)
    spec = make_fine_tune(tmp_path, config)
    folder = run_stages(spec)
    whole = [step.loss for step in progress(folder)]
    assert distance(go_on(spec, folder, 10, config), whole) == 0


@pytest.mark.long
@pytest.mark.parametrize("options", [{"zero_stage": 2}, {"zero_stage": 3}, {"offload": "optimizer"}])
def test_in_bf16_a_stage_stays_near_stage_1(tmp_path, options):
    short = {"steps": 6, "warmup_steps": 1, "precision": "bf16"}
    found = []
    for name, changes in (("1", {}), ("other", options)):
        spec = make_fine_tune(tmp_path / name, config_of("1x1x2", **short, **changes), multitask_rows())
        found.append([step.loss for step in progress(run_stages(spec))])
    assert max(abs(a - b) for a, b in zip(*found, strict=True)) < 0.02
