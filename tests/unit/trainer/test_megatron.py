"""Checkpoints with their optimizer's state: ours to Megatron-DeepSpeed's files of any layout, and back."""

import json
import pickle
from argparse import Namespace
from enum import Enum
from pathlib import Path

import pytest
import torch
from deepspeed.utils.tensor_fragment import fragment_address
from safetensors.torch import save_file

from bloom.config import BloomConfig
from bloom.layout import Layout
from bloom.tensors import expected_tensors
from bloom.weights import load_model
from services.trainer.megatron import files, states
from services.trainer.megatron import to_theirs as writing
from services.trainer.megatron.to_ours import KEYS, to_ours
from services.trainer.megatron.to_theirs import to_theirs
from services.trainer.saved_state import MANIFEST, SavedState, stored_name

CONFIG = BloomConfig(vocab_size=211, hidden_size=24, n_layer=3, n_head=6)
STEP, ADAM_STEPS = 95, 90


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A checkpoint as the trainer writes it, of random numbers."""
    folder = tmp_path / "step-00000095"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors, regions = {}, {}
    for name, shape in expected_tensors(CONFIG).items():
        regions[name] = ((0, shape[0]), (0, shape[1] if len(shape) == 2 else 1))
        tensors |= {stored_name(name, key): torch.randn(shape, generator=generator) for key in KEYS}
    save_file(tensors, folder / "rank-00000.safetensors", metadata={"regions": json.dumps(regions)})
    manifest = {
        "step": STEP,
        "optimizer_steps": ADAM_STEPS,
        "config": CONFIG.to_hf(),
        "files": {"rank-00000.safetensors": ""},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("layout", ["1x1x1", "2x1x1", "1x3x1", "1x1x5", "2x2x2", "3x2x4", "6x3x1"])
def test_through_any_layout_of_theirs_a_checkpoint_comes_back_to_the_last_bit(ours: Path, tmp_path: Path, layout: str):
    assert to_theirs(ours, tmp_path / "theirs", Layout.parse(layout)) == STEP
    assert to_ours(tmp_path / "theirs", tmp_path / "back", CONFIG) == STEP
    want, got = SavedState(ours), SavedState(tmp_path / "back" / "state")
    assert (got.step, got.optimizer_steps, got.config) == (STEP, ADAM_STEPS, CONFIG)
    assert set(got.names()) == set(want.names())
    for name in want.names():
        for key in KEYS:
            assert torch.equal(got.read(name, key), want.read(name, key)), (name, key)
    weights = load_model(tmp_path / "back", dtype=torch.float32).state_dict()
    assert all(torch.equal(tensor, want.read(name).bfloat16().float()) for name, tensor in weights.items())


def test_a_part_of_a_state_is_read_from_what_came_back(ours: Path, tmp_path: Path):
    to_theirs(ours, tmp_path / "theirs", Layout.parse("2x2x2"))
    to_ours(tmp_path / "theirs", tmp_path / "back", CONFIG)
    name, part = "h.1.mlp.dense_4h_to_h.weight", ((3, 9), (48, 96))
    want = SavedState(ours).read(name, "exp_avg")[3:9, 48:96]
    assert torch.equal(SavedState(tmp_path / "back" / "state").read(name, "exp_avg", part), want)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda patch: patch.setattr(states.Fragment, "read", _shifted(states.Fragment.read)),
        lambda patch: patch.setattr(writing, "ROW_MULTIPLE", 96),
        lambda patch: patch.setattr(states, "ADAM_STATE", ("exp_avg_sq", "exp_avg")) or _swap(patch),
    ],
    ids=["a fragment read one number late", "rows padded otherwise", "the two moments swapped"],
)
def test_mistakes_in_where_numbers_lie_are_seen(ours: Path, tmp_path: Path, monkeypatch, mistake):
    mistake(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        test_through_any_layout_of_theirs_a_checkpoint_comes_back_to_the_last_bit(ours, tmp_path, "2x2x2")
        assert (
            torch.load(tmp_path / "theirs" / "layer_01-model_00-model_states.pt")["word_embeddings.weight"].shape[0]
            == 128
        )


def _shifted(read):
    def late(self, key):
        flat = read(self, key)
        return flat.roll(-1)

    return late


def _swap(patch) -> None:
    read = states.OptimizerStates.read
    other = {"exp_avg": "exp_avg_sq", "exp_avg_sq": "exp_avg"}
    patch.setattr(states.OptimizerStates, "read", lambda self, name, key: read(self, name, other.get(key, key)))


def test_tensor_parallel_norms_that_drifted_apart_are_averaged(ours: Path, tmp_path: Path):
    to_theirs(ours, tmp_path / "theirs", Layout.parse("2x1x1"))
    path = tmp_path / "theirs" / files.optimizer_name(0, 1)
    content = torch.load(path, weights_only=False)
    state = content["optimizer_state_dict"]
    address = state["param_slice_mappings"][2]["7.weight"]  # ln_f
    state["base_optimizer_state"]["state"][2]["exp_avg_sq"][address.start : address.start + address.numel] += 1.0
    torch.save(content, path)
    to_ours(tmp_path / "theirs", tmp_path / "back", CONFIG)
    got = SavedState(tmp_path / "back" / "state").read("ln_f.weight", "exp_avg_sq")
    torch.testing.assert_close(got, SavedState(ours).read("ln_f.weight", "exp_avg_sq") + 0.5)


class Kind(Enum):
    alibi = 1


class Arguments(Namespace):
    """Megatron's are a Namespace; megatron-core, where it is imported, tells torch that those are safe."""


def test_what_megatron_keeps_beside_is_not_built(ours: Path, tmp_path: Path, capsys):
    to_theirs(ours, tmp_path / "theirs", Layout())
    path = tmp_path / "theirs" / files.model_name(0)
    content = torch.load(path, weights_only=False)
    torch.save(content | {"args": Arguments(kind=Kind.alibi), "rng": Dangerous(), "iteration": 7}, path)
    assert to_ours(tmp_path / "theirs", tmp_path / "back", CONFIG) == 7
    assert isinstance(files.load_counters(path)["args"], files.Inert)
    assert "must not run" not in capsys.readouterr().out


class Dangerous:
    def __reduce__(self):
        return print, ("this must not run",)


OPTIMIZER = files.optimizer_name(1, 0)


@pytest.mark.parametrize(
    ("file", "break_it", "says"),
    [
        (OPTIMIZER, lambda path: path.unlink(), f"{OPTIMIZER} is missing in .*; copy all files"),
        (OPTIMIZER, lambda path: path.write_bytes(path.read_bytes()[:-200]), "is damaged, or holds more than"),
        (OPTIMIZER, lambda path: torch.save({"x": Dangerous()}, path), "is damaged, or holds more than"),
        (OPTIMIZER, lambda path: path.write_bytes(pickle.dumps(Dangerous())), "is damaged, or holds more than"),
        (OPTIMIZER, lambda path: torch.save({"x": 1}, path), "holds no state of DeepSpeed's BF16_Optimizer"),
        (OPTIMIZER, lambda path: torch.save([fragment_address(1, 2)], path), "holds a list, not a state by name"),
        (files.model_name(0), lambda path: path.unlink(), "No such file"),
        (files.model_name(0), lambda path: torch.save({}, path), "does not say at which step it was written"),
        ("layer_04-model_01-model_states.pt", lambda path: path.unlink(), "layer_04-model_01.* is missing"),
    ],
)
def test_files_that_are_not_whole_are_refused_and_nothing_is_written(
    ours: Path, tmp_path: Path, capsys, file, break_it, says
):
    to_theirs(ours, tmp_path / "theirs", Layout.parse("2x1x2"))
    break_it(tmp_path / "theirs" / file)
    with pytest.raises((ValueError, OSError), match=says):
        to_ours(tmp_path / "theirs", tmp_path / "back", CONFIG)
    assert not (tmp_path / "back").exists()
    assert "must not run" not in capsys.readouterr().out


def test_a_checkpoint_that_adamw_did_not_train_is_refused(ours: Path, tmp_path: Path):
    path = ours / "rank-00000.safetensors"
    regions = {"ln_f.weight": ((0, 24), (0, 1))}
    save_file({"value:ln_f.weight": torch.zeros(24)}, path, metadata={"regions": json.dumps(regions)})
    with pytest.raises(ValueError, match=r"holds no exp_avg and exp_avg_sq of word_embeddings\.weight"):
        to_theirs(ours, tmp_path / "theirs", Layout())
    assert not (tmp_path / "theirs").exists()


def test_states_of_another_model_are_refused(ours: Path, tmp_path: Path):
    to_theirs(ours, tmp_path / "theirs", Layout.parse("1x1x2"))
    deeper = BloomConfig(vocab_size=211, hidden_size=24, n_layer=4, n_head=6)
    with pytest.raises(ValueError, match=r"layer_06-model_00-model_states\.pt and 1 more is missing"):
        to_ours(tmp_path / "theirs", tmp_path / "back", deeper)
    with pytest.raises(ValueError, match="check --config"):
        states.OptimizerStates(tmp_path / "theirs", deeper, 1)
    with pytest.raises(ValueError, match="tp=4 does not divide 6 heads"):
        to_theirs(ours, tmp_path / "more", Layout.parse("4x1x1"))
