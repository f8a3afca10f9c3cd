"""Runs on every kind of layout, as real processes, against one loop of transformers and PyTorch's AdamW."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bloom.layout import Layout
from services.common.artifacts import ArtifactStore
from services.trainer.config import RunSpec, TrainConfig
from services.trainer.dataset import IGNORE, Windows
from services.trainer.folder import JobFolder
from services.trainer.prepare import Prepared
from services.trainer.progress import Progress
from services.trainer.schedule import Schedule
from tests.support.bloom_models import make_hf_folder, make_hf_model
from tests.support.training import job_folder, losses, make_run, multitask_rows, progress, run_stages

HEADS, LAYERS, VOCAB, STEPS = 12, 3, 512, 20  # heads no power of two; layers that stages cannot share equally
BATCH = 8  # sequences of every step, whatever the layout
CONFIG = TrainConfig(
    steps=STEPS,
    sequence_length=32,
    learning_rate=1e-3,
    warmup_steps=4,
    precision="fp32",
    clip_grad_norm=1.0,
    checkpoint_every_steps=10,
)


def config_of(layout: str, micro_batch: int = 1, **changes: object) -> TrainConfig:
    parsed = Layout.parse(layout)
    steps = BATCH // (parsed.dp * micro_batch)
    return dataclasses.replace(CONFIG, layout=parsed, micro_batch=micro_batch, gradient_accumulation=steps, **changes)


def make_fine_tune(data_dir: Path, config: TrainConfig, rows: list[dict[str, object]] | None = None) -> RunSpec:
    """A run that starts from a model with every parameter perturbed."""
    folder = make_hf_folder(data_dir / "base", n_head=HEADS, n_layer=LAYERS, vocab=VOCAB)
    spec = make_run(data_dir, config, rows=rows)
    store = ArtifactStore(spec.artifacts_url, data_dir / "cache")
    files = tuple((path.name, store.write_file(path)) for path in sorted(folder.iterdir()))
    return dataclasses.replace(spec, base_files=files)


def transformers_run(folder: JobFolder, config: TrainConfig) -> tuple[list[tuple[float, float]], dict[str, Tensor]]:
    """(loss, gradient norm) of each step and the final weights: no DeepSpeed, no ranks, no accumulation."""
    windows = Windows(Path(Prepared.load(folder.tokens).windows_folder), config.seed)
    model = make_hf_model(n_head=HEADS, n_layer=LAYERS, vocab=VOCAB).train()
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    kept = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))
    schedule = Schedule(
        peak=config.learning_rate,
        minimum=config.min_learning_rate,
        warmup=config.samples_before(4),
        total=config.samples_before(STEPS),
    )
    found = []
    for step in range(STEPS):
        first, end = config.samples_before(step), config.samples_before(step + 1)
        batch = windows.micro_batch(first, end - first)
        logits = model(input_ids=torch.from_numpy(batch.inputs)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = schedule.at(end)
        optimizer.step()
        optimizer.zero_grad()
        found.append((loss.item(), norm.item()))
    return found, {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}


def without_key_bias(name: str, tensor: Tensor) -> Tensor:
    """The keys' bias has no gradient: softmax does not see it. What AdamW makes of rounding instead is no matter."""
    return tensor.view(HEADS, 3, -1)[:, ::2] if name.endswith("query_key_value.bias") else tensor


def losses_and_norms(steps: list[Progress]) -> list[tuple[float, float]]:
    return [(step.loss, step.grad_norm) for step in steps]


def greatest_difference(got: list[tuple[float, float]], want: list[tuple[float, float]]) -> tuple[float, float]:
    """Of losses, and of gradient norms relative to their size."""
    assert len(got) == len(want) == STEPS
    pairs = list(zip(got, want, strict=True))
    return max(abs(a[0] - b[0]) for a, b in pairs), max(abs(a[1] / b[1] - 1) for a, b in pairs)


@pytest.mark.parametrize(
    ("layout", "micro_batch"),
    [
        ("2x1x1", 2),
        ("1x3x1", 1),
        ("2x2x2", 1),
        pytest.param("1x1x2", 1, marks=pytest.mark.long),
        pytest.param("2x2x1", 2, marks=pytest.mark.long),
        pytest.param("4x1x2", 1, marks=pytest.mark.long),
        pytest.param("1x2x2", 2, marks=pytest.mark.long),
    ],
)
def test_losses_gradient_norms_and_final_weights_equal_transformers(tmp_path, layout: str, micro_batch: int):
    config = config_of(layout, micro_batch)
    folder = run_stages(make_fine_tune(tmp_path, config))
    want, weights = transformers_run(folder, config)
    loss, norm = greatest_difference(losses_and_norms(progress(folder)), want)
    assert loss < 1e-5
    assert norm < 1e-4
    exported = load_file(folder.export / "model.safetensors")
    assert set(exported) == set(weights)
    for name, tensor in weights.items():
        torch.testing.assert_close(*map(without_key_bias, (name, name), (exported[name], tensor)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("layout", ["1x1x2", "1x2x1"])
def test_a_batch_that_grows_gives_the_losses_of_transformers(tmp_path, layout: str):
    config = config_of(layout, batch_ramp="2,2,40")
    assert [config.num_micro_batches(step) * config.layout.dp for step in (0, 7, 12, 15, 19)] == [2, 4, 6, 8, 8]
    folder = run_stages(make_fine_tune(tmp_path, config))
    want, _ = transformers_run(folder, config)
    loss, norm = greatest_difference(losses_and_norms(progress(folder)), want)
    assert loss < 1e-5
    assert norm < 1e-4


def test_in_bf16_losses_stay_near_those_of_transformers_in_fp32(tmp_path):
    config = config_of("2x2x1", 2, precision="bf16")
    spec = make_fine_tune(tmp_path, config)
    job_folder(spec).precision.write_text("bf16")  # on any processor, however slow it is at that
    folder = run_stages(spec)
    want, _ = transformers_run(folder, config)
    assert 1e-5 < greatest_difference(losses_and_norms(progress(folder)), want)[0] < 0.02


@pytest.mark.parametrize(
    "mistake", ["slopes_of_another_rank", pytest.param("tied_gradient_counted_twice", marks=pytest.mark.long)]
)
def test_a_planted_mistake_is_noticed(tmp_path, mistake: str):
    config = config_of("2x2x1", 2)
    folder = run_stages(make_fine_tune(tmp_path, config), mistake=mistake)
    want, _ = transformers_run(folder, config)
    assert greatest_difference(losses_and_norms(progress(folder)), want)[0] > 1e-4


def test_a_run_goes_on_from_a_checkpoint_of_another_layout(tmp_path):
    spec = make_fine_tune(tmp_path, config_of("2x2x1", checkpoint_every_steps=10))
    folder = run_stages(spec)
    whole = losses_and_norms(progress(folder))
    for layout in ("2x2x1", "2x1x2", "1x1x1"):
        resumed = resume_from_step_10(spec, folder, layout)
        differences = [abs(a[0] - b[0]) for a, b in zip(resumed, whole[10:], strict=True)]
        assert max(differences) < (1e-9 if layout == "2x2x1" else 1e-4), layout


def test_packed_and_normalised_examples_have_the_losses_of_each_alone_on_replicas_and_through_stages(tmp_path):
    short = {"steps": 4, "warmup_steps": 1, "normalize_targets": True}
    folders = [
        run_stages(make_fine_tune(tmp_path / layout, config_of(layout, 2, **short), multitask_rows()))
        for layout in ("1x1x2", "2x2x1")
    ]
    on_replicas, through_stages = map(losses, folders)
    assert max(abs(one - two) for one, two in zip(on_replicas, through_stages, strict=True)) < 1e-5
    alone = losses_of_examples_alone(folders[0])
    assert abs(on_replicas[0] - torch.stack([example.mean() for example in alone]).mean()) < 1e-5
    assert abs(on_replicas[0] - torch.cat(alone).mean()) > 1e-3  # what it would be without normalising


def losses_of_examples_alone(folder: JobFolder) -> list[Tensor]:
    """By transformers, of each target of each example in the first step's windows."""
    model = make_hf_model(n_head=HEADS, n_layer=LAYERS, vocab=VOCAB)
    batch = Windows(Path(Prepared.load(folder.tokens).windows_folder), CONFIG.seed).micro_batch(0, BATCH)
    found = []
    for window in range(BATCH):
        inputs, targets, segments = (torch.from_numpy(a[window]) for a in (batch.inputs, batch.targets, batch.segments))
        for example in segments.unique():
            logits = model(input_ids=inputs[segments == example][None]).logits[0]
            expected = targets[segments == example]
            if (expected != IGNORE).any():  # else padding
                found.append(torch.nn.functional.cross_entropy(logits, expected, reduction="none")[expected != IGNORE])
    return found


@pytest.mark.long
def test_with_dropout_and_recomputed_layers_a_resumed_run_has_the_losses_of_an_undisturbed_one(tmp_path):
    config = config_of("2x2x1", 2, steps=4, warmup_steps=1, checkpoint_every_steps=2, dropout=0.2, recompute=True)
    spec = make_fine_tune(tmp_path, config, multitask_rows())
    folder = run_stages(spec)
    whole = losses_and_norms(progress(folder))
    (folder.checkpoints / "step-00000004").rename(folder.path / "end")  # as after a kill at step 3
    folder.progress.unlink()
    run_stages(dataclasses.replace(spec, attempt=2, fencing_token=2))
    assert losses_and_norms(progress(folder)) == whole[2:]


def resume_from_step_10(spec: RunSpec, folder: JobFolder, layout: str) -> list[tuple[float, float]]:
    last = folder.checkpoints / "step-00000020"
    if last.exists():
        last.rename(folder.path / f"end-{layout}")  # as after a kill at step 19
    folder.progress.unlink()
    again = dataclasses.replace(spec, attempt=2, fencing_token=2, config=config_of(layout))
    steps = progress(run_stages(again))
    assert [step.step for step in steps] == list(range(11, 21))
    return losses_and_norms(steps)
