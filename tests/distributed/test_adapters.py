"""Adapters that a run trains: on every kind of layout as peft does, exported merged and as peft reads them."""

import dataclasses
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import BloomForCausalLM

from bloom.adapter import LAYERS as LAYERS_WITH_ADAPTERS
from bloom.layout import Layout
from services.common.artifacts import ArtifactStore
from services.trainer.config import LoraConfig, TrainConfig
from services.trainer.dataset import Windows
from services.trainer.folder import JobFolder
from services.trainer.lora import initial_a
from services.trainer.prepare import Prepared
from tests.distributed.test_layouts_equal_transformers import config_of, make_fine_tune
from tests.support.bloom_models import make_hf_folder, make_hf_model
from tests.support.training import BASE, job_folder, losses, make_run, multitask_rows, progress, run_stages

HEADS, LAYERS, RANK = 12, 3, 4
LORA = LoraConfig(rank=RANK, alpha=12.0)


def test_a_trained_adapter_loads_in_peft_and_merges_into_what_was_exported(tmp_path):
    base = make_hf_folder(tmp_path / "base", vocab=512)
    lora = LoraConfig(rank=4, alpha=12.0, dropout=0.1)
    config = dataclasses.replace(BASE, steps=6, learning_rate=1e-2, layout=Layout(dp=2), lora=lora)
    spec = make_run(tmp_path, config, rows=multitask_rows())
    store = ArtifactStore(spec.artifacts_url, tmp_path / "cache")
    files = tuple((path.name, store.write_file(path)) for path in sorted(base.iterdir()))
    folder = run_stages(dataclasses.replace(spec, base_files=files))
    assert losses(folder)[-1] < losses(folder)[0]

    model = BloomForCausalLM.from_pretrained(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = peft.PeftModel.from_pretrained(model, folder.export / "adapter").merge_and_unload().state_dict()
    exported = load_file(folder.export / "model.safetensors")
    changed = {name for name, tensor in exported.items() if not torch.equal(tensor, before[name])}
    assert len(changed) == 4 * 2  # each linear layer's weight, nothing else
    for name, tensor in exported.items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-5, atol=1e-6)


def peft_model(base: BloomForCausalLM | None = None) -> peft.PeftModel:
    base = base or make_hf_model(n_head=HEADS, n_layer=LAYERS, vocab=512)
    options = peft.LoraConfig(r=RANK, lora_alpha=LORA.alpha, target_modules=list(LAYERS_WITH_ADAPTERS))
    return peft.get_peft_model(base, options)


def peft_run(
    folder: JobFolder, config: TrainConfig, model: peft.PeftModel
) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """(loss, gradient norm) of each step and the final adapter, of peft's layers that begin with the same A."""
    windows = Windows(Path(Prepared.load(folder.tokens).windows_folder), config.seed)
    model.train()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for name, parameter in trained.items():
            if ".lora_A." in name:
                layer = name.removeprefix("base_model.model.transformer.").partition(".lora_A")[0]
                parameter.copy_(initial_a(parameter.shape[1], RANK, config.seed, layer))
    optimizer = torch.optim.AdamW(
        trained.values(), weight_decay=config.weight_decay, betas=(config.beta1, config.beta2)
    )
    schedule = config.schedule(config.steps)
    found = []
    for step in range(config.steps):
        first, end = config.samples_before(step), config.samples_before(step + 1)
        batch = windows.micro_batch(first, end - first)
        logits = model(input_ids=torch.from_numpy(batch.inputs)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), config.clip_grad_norm)
        optimizer.param_groups[0]["lr"] = config.learning_rate * schedule.at(end)
        optimizer.step()
        optimizer.zero_grad()
        found.append((loss.item(), norm.item()))
    return found, peft.get_peft_model_state_dict(model)


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("2x1x1", {}),
        ("1x2x1", {}),
        pytest.param("2x2x1", {}, marks=pytest.mark.long),
        pytest.param("3x1x2", {}, marks=pytest.mark.long),
        pytest.param("1x1x2", {"zero_stage": 3}, marks=pytest.mark.long),
    ],
)
def test_an_adapter_trains_on_any_layout_as_in_peft(tmp_path, layout, options):
    config = dataclasses.replace(config_of(layout, lora=LORA, **options), steps=10, learning_rate=1e-2)
    spec = make_fine_tune(tmp_path, config)
    folder = run_stages(spec)
    want, adapter = peft_run(folder, config, peft_model())
    got = [(step.loss, step.grad_norm) for step in progress(folder)]
    assert max(abs(a[0] - b[0]) for a, b in zip(got, want, strict=True)) < 1e-5
    assert max(abs(a[1] / b[1] - 1) for a, b in zip(got, want, strict=True)) < 1e-4
    exported = load_file(folder.export / "adapter" / "adapter_model.safetensors")
    assert set(exported) == set(adapter)
    for name, tensor in adapter.items():
        torch.testing.assert_close(exported[name], tensor, rtol=0, atol=1e-4, msg=name)


@pytest.mark.long
def test_a_gradient_that_is_not_summed_over_ranks_is_noticed(tmp_path):
    config = dataclasses.replace(config_of("2x1x1", lora=LORA), steps=10, learning_rate=1e-2)
    folder = run_stages(make_fine_tune(tmp_path, config), mistake="adapters_sides_not_summed")
    want, _ = peft_run(folder, config, peft_model())
    assert max(abs(step.loss - loss) for step, (loss, _) in zip(progress(folder), want, strict=True)) > 1e-4


@pytest.mark.long
def test_in_bf16_an_adapter_trains_through_stages(tmp_path):
    """DeepSpeed's bf16 optimizer does not know the frozen embedding that both ends of the pipeline have."""
    config = dataclasses.replace(config_of("1x2x1", lora=LORA, precision="bf16"), steps=6, learning_rate=1e-2)
    spec = make_fine_tune(tmp_path, config)
    job_folder(spec).precision.write_text("bf16")
    folder = run_stages(spec)
    want, _ = peft_run(folder, config, peft_model())
    assert max(abs(step.loss - loss) for step, (loss, _) in zip(progress(folder), want, strict=True)) < 0.02


@pytest.mark.long
def test_an_adapters_run_goes_on_from_a_checkpoint_of_another_layout(tmp_path):
    config = config_of("2x1x1", lora=LORA)
    spec = make_fine_tune(tmp_path, config)
    folder = run_stages(spec)
    whole = [step.loss for step in progress(folder)]
    shutil.rmtree(folder.checkpoints / "step-00000020")
    folder.progress.unlink()
    other = config_of("1x2x1", lora=LORA)
    resumed = progress(run_stages(dataclasses.replace(spec, attempt=2, fencing_token=2, config=other)))
    assert [step.step for step in resumed] == list(range(11, 21))
    assert max(abs(step.loss - loss) for step, loss in zip(resumed, whole[10:], strict=True)) < 1e-4
