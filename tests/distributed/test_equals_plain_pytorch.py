"""What DeepSpeed's ranks compute, against one plain PyTorch loop; and a resumed run against an undisturbed one."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bloom.config import BloomConfig
from bloom.layout import Layout
from bloom.model import BloomModel
from services.trainer.config import TrainConfig
from services.trainer.dataset import Windows
from services.trainer.folder import JobFolder
from services.trainer.loss import LanguageModelLoss
from services.trainer.optimizer import MuonAdamW, build_optimizer
from services.trainer.prepare import Prepared
from services.trainer.schedule import Schedule
from tests.support.training import BASE, MODEL, job_folder, losses, make_run, progress, run_stages

TWO_RANKS = dataclasses.replace(BASE, micro_batch=1, gradient_accumulation=2, layout=Layout(dp=2), clip_grad_norm=0.5)


def plain_losses(
    folder: JobFolder, config: TrainConfig, make_optimizer: Callable[..., torch.optim.Optimizer]
) -> list[float]:
    """The same run as a loop over whole global batches: no DeepSpeed, no ranks, no accumulation."""
    prepared = Prepared.load(folder.tokens)
    windows = Windows(Path(prepared.windows_folder), config.seed)
    model = BloomModel(BloomConfig.from_hf({**MODEL, "vocab_size": 512}))
    model.initialize(config.seed)
    loss_of = LanguageModelLoss(model.train())
    optimizer = make_optimizer(model, config)
    schedule = Schedule(
        peak=1.0,
        minimum=config.min_learning_rate / config.learning_rate,
        warmup=config.warmup_steps,
        total=prepared.total_steps,
    )
    peaks = [group.get("peak", config.learning_rate) for group in optimizer.param_groups]
    found = []
    for step in range(prepared.total_steps):
        first = step * config.global_batch
        batch = windows.micro_batch(first, config.global_batch)
        scale = 1 / windows.num_targets(first, config.global_batch)
        loss = loss_of(torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets), None, scale)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule.at(step + 1)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def torch_adamw(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    kept = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))


def whole_matrices(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Muon without partitions: every matrix is a group of its own. That this is Muon the unit tests show."""
    groups = []
    for group in build_optimizer(model, config).param_groups:
        if "matrices" not in group:
            groups.append(group)
            continue
        groups += [{**group, "params": [matrix], "matrices": [tuple(matrix.shape)]} for matrix in group["params"]]
    return MuonAdamW(groups, compute_dtype=torch.float32)


@pytest.mark.parametrize(
    ("optimizer", "plain"), [pytest.param("adamw", torch_adamw, marks=pytest.mark.long), ("muon", whole_matrices)]
)
def test_two_ranks_with_accumulation_equal_a_plain_loop(tmp_path, optimizer, plain):
    config = dataclasses.replace(TWO_RANKS, optimizer=optimizer)
    folder = run_stages(make_run(tmp_path, config))
    assert losses(folder) == pytest.approx(plain_losses(folder, config, plain), abs=1e-5)


def test_a_resumed_run_has_the_losses_of_an_undisturbed_one_to_the_last_bit(tmp_path):
    """bf16, dropout and Muon: master weights, momentum and every random draw must come back."""
    config = dataclasses.replace(
        TWO_RANKS, precision="bf16", dropout=0.1, optimizer="muon", checkpoint_every_steps=2, steps=6
    )
    spec = make_run(tmp_path, config)
    whole = run_stages(spec)
    expected = progress(whole)
    assert [path.name for path in sorted(whole.checkpoints.iterdir())] == ["step-00000004", "step-00000006"]

    # As after a kill in step 5: the newest checkpoint is damaged, the one before is whole.
    newest = next((whole.checkpoints / "step-00000006").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    whole.progress.unlink()
    shutil.rmtree(whole.export)
    again = dataclasses.replace(spec, attempt=2, fencing_token=2)
    resumed = progress(run_stages(again))
    assert [step.step for step in resumed] == [5, 6]
    assert [(step.loss, step.grad_norm) for step in resumed] == [(step.loss, step.grad_norm) for step in expected[4:]]
    first, second = (dict(json.loads(whole.result(token).read_text())) for token in (1, 2))
    assert first.pop("training.json") != second.pop("training.json")  # which tells of the attempts
    assert first == second  # digests: the weights are equal to the last bit


def test_a_run_goes_on_in_the_precision_it_began_with(tmp_path):
    config = dataclasses.replace(BASE, steps=2)
    spec = make_run(tmp_path / "asks for bf16", dataclasses.replace(config, precision="bf16"))
    job_folder(spec).precision.write_text("fp32")  # its first attempt was on a processor without bf16
    in_fp32 = make_run(tmp_path / "asks for fp32", config)
    assert losses(run_stages(spec)) == losses(run_stages(in_fp32))


def test_a_diverging_run_fails_with_the_step_and_the_remedy(tmp_path):
    config = dataclasses.replace(BASE, learning_rate=1e30, min_learning_rate=1e30, warmup_steps=0, weight_decay=0.0)
    spec = make_run(tmp_path, config)
    with pytest.raises(RuntimeError, match="lower learning_rate"):
        run_stages(spec)
    failure = json.loads(job_folder(spec).failure(1).read_text())
    assert failure["code"] == "DIVERGED"
    assert failure["parameter"] == "learning_rate"
