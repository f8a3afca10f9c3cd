"""What we write, transformers reads; what it wrote as a pickle, the command in our refusal converts."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BloomForCausalLM

from bloom.config import BloomConfig
from bloom.model import BloomModel
from bloom.weights import load_model, save_model
from tests.support.bloom_models import bloom_logits, hf_logits, make_hf_folder, make_hf_model, random_ids


@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 60_000], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_an_export_loads_in_transformers_with_no_key_missing_or_unexpected_and_gives_the_same_logits(
    tmp_path: Path, dtype: torch.dtype, max_shard_bytes: int
):
    model = load_model(make_hf_folder(tmp_path / "theirs", n_head=5, hidden=80))
    save_model(model, tmp_path / "ours", dtype=dtype, max_shard_bytes=max_shard_bytes)
    stored, info = BloomForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert stored.dtype == dtype
    hf = stored.float().eval()
    again = load_model(tmp_path / "ours")
    ids = random_ids(40, 211)
    torch.testing.assert_close(bloom_logits(again, ids), hf_logits(hf, ids), rtol=0, atol=1e-4)


def test_the_configuration_of_an_export_is_ours_in_transformers(tmp_path: Path):
    config = BloomConfig(
        hidden_size=32, n_layer=1, n_head=4, vocab_size=97, hidden_dropout=0.1, layer_norm_epsilon=1e-6
    )
    model = BloomModel(config)
    model.initialize(0)
    save_model(model, tmp_path)
    theirs = BloomForCausalLM.from_pretrained(tmp_path).config
    assert BloomConfig.from_hf(theirs.to_dict()) == config
    assert theirs.layer_norm_epsilon == 1e-6
    assert theirs.hidden_dropout == 0.1


def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path: Path):
    hf = make_hf_model()
    folder = tmp_path / "it's a model"
    hf.config.save_pretrained(folder)
    torch.save(hf.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin .* pickle.*refused.*python -c") as refused:
        load_model(folder)
    command = str(refused.value).partition("trust it: ")[2]
    assert command.startswith("python -c ")
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True, capture_output=True, timeout=120)
    converted = load_model(tmp_path / "it's a model-safetensors")
    ids = random_ids(40, 211)
    torch.testing.assert_close(bloom_logits(converted, ids), hf_logits(hf, ids), rtol=0, atol=1e-4)
