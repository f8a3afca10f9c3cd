"""Runs in fp16: refused where nothing computes it, else near fp32, and resumed with their loss scale."""

import dataclasses
import json
import shutil

import pytest
import torch

from services.trainer.config import TrainConfig
from services.trainer.failure import JobFailure
from services.trainer.folder import JobFolder
from services.trainer.precision import check_fp16
from services.trainer.progress import ProgressReader
from tests.support.training import BASE, make_run, run_stages

CONFIG = dataclasses.replace(BASE, precision="fp16", steps=16, checkpoint_every_steps=12, warmup_steps=2)


def reports(folder: JobFolder) -> tuple[list[tuple[int, float, float]], list[str]]:
    """(step, loss, gradient norm) of the steps that changed something, and the messages."""
    steps, messages = ProgressReader(folder.progress).read()
    return [(step.step, step.loss, step.grad_norm) for step in steps], messages


def test_where_nothing_has_products_of_fp16_a_job_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    with pytest.raises(JobFailure, match=r"no GPU is here.*use bf16 or fp32") as refused:
        check_fp16()
    assert (refused.value.code, refused.value.parameter) == ("BAD_PRECISION", "precision")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_fp16()


@pytest.mark.long
@pytest.mark.parametrize("stage", [1, 3])
def test_steps_that_overflow_change_nothing_and_a_resumed_run_has_the_loss_scale(tmp_path, stage):
    """On any processor, slowly: what a GPU changes is how the products are computed."""
    spec = make_run(tmp_path, dataclasses.replace(CONFIG, zero_stage=stage))
    folder = run_stages(spec, mistake="fp16_anywhere")
    whole, messages = reports(folder)
    skipped = [message for message in messages if "changed nothing: its gradients overflowed fp16" in message]
    assert skipped
    assert len(whole) + len(skipped) == CONFIG.steps
    assert whole[-1][1] < whole[0][1]
    manifest = json.loads((folder.checkpoints / "step-00000012" / "manifest.json").read_text())
    assert 1 < manifest["loss_scale"]["cur_scale"] < 2**22
    assert manifest["optimizer_steps"] == 12 - sum(int(message.split()[1]) <= 12 for message in skipped)

    shutil.rmtree(folder.checkpoints / "step-00000016")
    for mistake, is_same in (("fp16_anywhere", True), ("loss_scale_forgotten", False)):
        folder.progress.unlink()
        folder.progress.with_suffix(".reported").unlink(missing_ok=True)
        shutil.rmtree(folder.checkpoints / "step-00000016", ignore_errors=True)
        run_stages(dataclasses.replace(spec, attempt=2, fencing_token=2), mistake=mistake)
        assert (reports(folder)[0] == whole[-4:]) == is_same


@pytest.mark.gpu
def test_on_a_gpu_losses_in_fp16_stay_near_those_in_fp32(tmp_path):
    def losses(config: TrainConfig) -> dict[int, float]:
        folder = run_stages(make_run(tmp_path / config.precision, config))
        return {step: loss for step, loss, _ in reports(folder)[0]}

    in_fp16, in_fp32 = losses(CONFIG), losses(dataclasses.replace(CONFIG, precision="fp32"))
    assert set(in_fp16) == set(in_fp32)  # a scale of 4,096 is not too much here
    assert max(abs(in_fp16[step] - in_fp32[step]) for step in in_fp32) < 0.02
