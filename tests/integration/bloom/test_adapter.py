"""LoRA adapters go to peft and come from peft."""

import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BloomForCausalLM

from bloom.adapter import CONFIG_FILE, LAYERS, WEIGHTS_FILE, merge, read_adapter, write_adapter
from bloom.weights import load_config
from services.common.settings import ROOT
from tests.support.bloom_models import hf_logits, make_hf_folder, random_ids

IDS = random_ids(24, 211, seed=3)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_hf_folder(tmp_path / "base")


def peft_adapter(base: Path, folder: Path, **config: object) -> torch.Tensor:
    """An adapter saved by peft, no number zero; its logits (S, V)."""
    settings = {"r": 4, "lora_alpha": 12, "target_modules": list(LAYERS), "task_type": "CAUSAL_LM"} | config
    model = peft.get_peft_model(BloomForCausalLM.from_pretrained(base), peft.LoraConfig(**settings)).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1, generator=generator)
    model.save_pretrained(folder)
    return hf_logits(model, IDS)


def logits_of(folder: Path) -> torch.Tensor:
    return hf_logits(BloomForCausalLM.from_pretrained(folder).eval(), IDS)


@pytest.mark.parametrize(
    "config", [{}, {"use_rslora": True}, {"target_modules": ["query_key_value", "dense_4h_to_h"], "r": 2}]
)
def test_an_adapter_of_peft_gives_its_logits_when_merged(base: Path, tmp_path: Path, config: dict[str, object]):
    expected = peft_adapter(base, tmp_path / "adapter", **config)
    command = [sys.executable, "-m", "bloom.adapter", str(base), str(tmp_path / "adapter"), str(tmp_path / "merged")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert (expected - logits_of(base)).abs().max() > 0.1
    torch.testing.assert_close(logits_of(tmp_path / "merged"), expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_ours_gives_in_peft_what_it_gives_merged(base: Path, tmp_path: Path):
    generator = torch.Generator().manual_seed(6)
    layers = {
        f"h.{i}.{name}": (
            0.1 * torch.randn(3, columns, generator=generator),
            0.1 * torch.randn(rows, 3, generator=generator),
        )
        for i in range(2)
        for name, rows, columns in (("self_attention.query_key_value", 144, 48), ("mlp.dense_4h_to_h", 48, 192))
    }
    write_adapter(tmp_path / "adapter", layers, rank=3, alpha=6.0, dropout=0.0, base=str(base))
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    model = peft.PeftModel.from_pretrained(BloomForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    expected = hf_logits(model, IDS)
    assert (expected - logits_of(base)).abs().max() > 0.1
    torch.testing.assert_close(logits_of(tmp_path / "merged"), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "value"), [("use_dora", True), ("peft_type", "IA3"), ("bias", "all"), ("rank_pattern", {"dense": 2})]
)
def test_what_is_no_plain_lora_is_refused(base: Path, tmp_path: Path, key: str, value: object):
    peft_adapter(base, tmp_path / "adapter")
    path = tmp_path / "adapter" / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=f"has {key}=.*; only plain LoRA is merged here"):
        merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_another_model_or_half_of_one_is_refused(base: Path, tmp_path: Path):
    peft_adapter(base, tmp_path / "adapter")
    other = load_config(make_hf_folder(tmp_path / "other", n_head=6, hidden=96))
    with pytest.raises(ValueError, match=r"lora_A\.weight has shape \[4, .*\], this base and r=4 ask for"):
        read_adapter(tmp_path / "adapter", other)
    tensors = load_file(tmp_path / "adapter" / WEIGHTS_FILE)
    gone = next(name for name in tensors if "lora_B" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, tmp_path / "adapter" / WEIGHTS_FILE)
    with pytest.raises(ValueError, match="holds one half of"):
        read_adapter(tmp_path / "adapter", load_config(base))
