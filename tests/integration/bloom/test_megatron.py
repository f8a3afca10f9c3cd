"""BigScience's layer files, made here in their layout, and Hugging Face's format."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BloomForCausalLM

from bloom.megatron import from_hf, to_hf
from bloom.weights import load_config
from services.common.settings import ROOT
from tests.support.bloom_models import make_hf_folder

HEADS, HIDDEN, LAYERS, VOCAB = 6, 48, 3, 211


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_hf_folder(
        tmp_path / "hf", n_head=HEADS, hidden=HIDDEN, n_layer=LAYERS, vocab=VOCAB, dtype=torch.bfloat16
    )


def layer_files(model: Path, folder: Path, tp: int) -> Path:
    """What Megatron-DeepSpeed would have written: cut by hand, heads by heads."""
    state = {
        name.removeprefix("transformer."): tensor for name, tensor in load_file(model / "model.safetensors").items()
    }
    folder.mkdir()
    padded = torch.nn.functional.pad(state["word_embeddings.weight"], (0, 0, 0, 128 * tp - VOCAB % (128 * tp)))
    for rank in range(tp):
        embedding = {
            "word_embeddings.weight": padded.chunk(tp)[rank].clone(),
            "word_embeddings.norm.weight": state["word_embeddings_layernorm.weight"],
            "word_embeddings.norm.bias": state["word_embeddings_layernorm.bias"],
        }
        torch.save(embedding, folder / f"layer_01-model_{rank:02d}-model_states.pt")
        for layer in range(LAYERS):
            block = {
                name.removeprefix(f"h.{layer}."): tensor
                for name, tensor in state.items()
                if name.startswith(f"h.{layer}.")
            }
            for key, dim in (
                ("self_attention.query_key_value.weight", 0),
                ("self_attention.query_key_value.bias", 0),
                ("mlp.dense_h_to_4h.weight", 0),
                ("mlp.dense_h_to_4h.bias", 0),
                ("self_attention.dense.weight", 1),
                ("mlp.dense_4h_to_h.weight", 1),
            ):
                block[key] = block[key].chunk(tp, dim)[rank].clone()
            torch.save(block, folder / f"layer_{layer + 3:02d}-model_{rank:02d}-model_states.pt")
        last = {"weight": state["ln_f.weight"], "bias": state["ln_f.bias"]}
        torch.save(last, folder / f"layer_{LAYERS + 4:02d}-model_{rank:02d}-model_states.pt")
    return folder


@pytest.mark.parametrize("tp", [1, 2, 3])
def test_layer_files_become_the_model_that_they_were_cut_from(model: Path, tmp_path: Path, tp: int):
    files = layer_files(model, tmp_path / "megatron", tp)
    command = [sys.executable, "-m", "bloom.megatron", "to-hf", "--config", str(model / "config.json")]
    subprocess.run([*command, str(files), str(tmp_path / "back")], cwd=ROOT, check=True, capture_output=True)
    assert load_config(tmp_path / "back") == load_config(model)
    want = BloomForCausalLM.from_pretrained(model).state_dict()
    got = BloomForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())


@pytest.mark.parametrize("tp", [1, 2, 3])
def test_a_model_becomes_the_files_that_megatron_would_have_written(model: Path, tmp_path: Path, tp: int):
    from_hf(model, tmp_path / "ours", tp)
    for path in sorted(layer_files(model, tmp_path / "theirs", tp).iterdir()):
        want = torch.load(path, weights_only=True)
        got = torch.load(tmp_path / "ours" / path.name, weights_only=True)
        assert set(got) == set(want)
        assert all(torch.equal(got[key], tensor) for key, tensor in want.items()), path.name


def test_of_norms_that_drifted_apart_between_ranks_the_mean_is_taken(model: Path, tmp_path: Path):
    files = layer_files(model, tmp_path / "megatron", 2)
    path = files / f"layer_{LAYERS + 4:02d}-model_01-model_states.pt"
    drifted = torch.load(path, weights_only=True)
    torch.save(drifted | {"weight": drifted["weight"] + 0.5}, path)
    to_hf(files, tmp_path / "back", load_config(model))
    got = load_file(tmp_path / "back" / "model.safetensors")["transformer.ln_f.weight"].float()
    torch.testing.assert_close(got, drifted["weight"].float() + 0.25, rtol=0.01, atol=0.01)


class Dangerous:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda path: path.unlink(), r"layer_04-model_01-model_states\.pt is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is damaged, or holds more than weights"),
        (lambda path: path.write_bytes(pickle.dumps(Dangerous())), "is damaged, or holds more than weights"),
        (lambda path: torch.save({"x": torch.zeros(1)}, path), "holds no tensor 'input_layernorm.weight'"),
        (lambda path: torch.save([1], path), "holds a list, not tensors by name"),
    ],
)
def test_files_that_are_not_whole_are_refused_and_nothing_is_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], break_it, says: str
):
    files = layer_files(model, tmp_path / "megatron", 2)
    break_it(files / "layer_04-model_01-model_states.pt")
    with pytest.raises(ValueError, match=says):
        to_hf(files, tmp_path / "back", load_config(model))
    assert not (tmp_path / "back").exists()
    assert "must not run" not in capsys.readouterr().out


def test_files_of_another_model_are_refused(model: Path, tmp_path: Path):
    files = layer_files(model, tmp_path / "megatron", 2)
    other = load_config(make_hf_folder(tmp_path / "other", n_head=HEADS, hidden=96, n_layer=LAYERS, vocab=VOCAB))
    with pytest.raises(ValueError, match=r"has shape \[211, 48\], the model's is \[211, 96\]; check --config"):
        to_hf(files, tmp_path / "back", other)
