"""Adapters that a run trains: over two replicas, exported merged and as peft reads them."""

import dataclasses

import peft
import torch
from safetensors.torch import load_file
from transformers import BloomForCausalLM

from bloom.layout import Layout
from services.common.artifacts import ArtifactStore
from services.trainer.config import LoraConfig
from tests.support.bloom_models import make_hf_folder
from tests.support.training import BASE, losses, make_run, multitask_rows, run_stages


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
