"""Folders that transformers wrote, whole and damaged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bloom.config import BloomConfig
from bloom.model import BloomModel
from bloom.weights import load_config, load_model, save_model
from tests.support.bloom_models import make_hf_folder

META = {"format": "pt"}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("sharded"), sharded=True)


@pytest.fixture
def folder(single: Path, tmp_path: Path) -> Path:
    return shutil.copytree(single, tmp_path / "model")


@pytest.fixture
def shards(sharded: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sharded, tmp_path / "shards")


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata=META)


def rewrite_index(folder: Path, change) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def same_parameters(a: BloomModel, b: BloomModel) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_shards_and_a_single_file_give_the_same_model(folder: Path, shards: Path):
    assert len(list(shards.glob("*.safetensors"))) > 1
    assert same_parameters(load_model(folder), load_model(shards))


@pytest.mark.parametrize("prefix", [True, False], ids=["transformer.", "bare"])
@pytest.mark.parametrize("head", [True, False], ids=["head", "tied"])
def test_prefix_and_a_saved_tied_head_change_nothing(folder: Path, prefix: bool, head: bool):
    expected = load_model(folder)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        if head:
            tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"].clone()
        if not prefix:
            for name in [name for name in tensors if name.startswith("transformer.")]:
                tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    rewrite(folder, change)
    assert same_parameters(load_model(folder), expected)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("asked", [torch.float32, torch.float16, torch.bfloat16])
def test_each_stored_dtype_is_converted_to_the_one_asked_for(folder: Path, stored, asked):
    exact = load_model(folder)
    rewrite(folder, lambda tensors: tensors.update({name: t.to(stored) for name, t in tensors.items()}))
    model = load_model(folder, dtype=asked)
    assert {p.dtype for p in model.parameters()} == {asked}
    assert all(
        torch.equal(p, q.to(stored).to(asked)) for p, q in zip(model.parameters(), exact.parameters(), strict=True)
    )


def test_a_loaded_model_does_not_depend_on_its_file(folder: Path):
    model = load_model(folder)
    before = model.ln_f.weight.clone()
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(0)
    assert torch.equal(model.ln_f.weight, before)


def test_a_loaded_model_evaluates(folder: Path):
    assert not load_model(folder).training


def test_an_untied_head_is_refused(folder: Path):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        head = tensors["transformer.word_embeddings.weight"].clone()
        head[-1, -1] += 1
        tensors["lm_head.weight"] = head

    rewrite(folder, change)
    with pytest.raises(ValueError, match=r"lm_head\.weight .* differs from .*word_embeddings\.weight.*remove"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_named(folder: Path, keep: int):
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(keep if keep >= 0 else path.stat().st_size + keep)
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated.*copy it again"):
        load_model(folder)


def test_a_truncated_shard_is_named(shards: Path):
    path = sorted(shards.glob("*.safetensors"))[1]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 8)
    with pytest.raises(ValueError, match=f"{path.name} is truncated"):
        load_model(shards)


def test_a_missing_shard_is_named(shards: Path):
    path = sorted(shards.glob("*.safetensors"))[1]
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.name} is not in"):
        load_model(shards)


def test_a_missing_tensor_is_named(folder: Path):
    rewrite(folder, lambda tensors: tensors.pop("transformer.h.1.self_attention.dense.bias"))
    with pytest.raises(ValueError, match=r"missing tensor h\.1\.self_attention\.dense\.bias"):
        load_model(folder)


def test_an_index_that_names_a_tensor_its_shard_lacks_is_refused(shards: Path):
    last = sorted(shards.glob("*.safetensors"))[-1].name
    rewrite_index(shards, lambda weight_map: weight_map.update({"transformer.word_embeddings.weight": last}))
    with pytest.raises(ValueError, match=rf"transformer\.word_embeddings\.weight is missing in {last}"):
        load_model(shards)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "..", "x.bin", "", 3])
def test_an_index_may_not_leave_the_folder(shards: Path, name: object):
    rewrite_index(shards, lambda weight_map: weight_map.update({"transformer.ln_f.bias": name}))
    with pytest.raises(ValueError, match=r"index\.json places transformer\.ln_f\.bias in .*beside it"):
        load_model(shards)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": {}}', '{"weight_map": []}'])
def test_a_damaged_index_is_named(shards: Path, content: str):
    (shards / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        load_model(shards)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_an_absent_or_damaged_config_is_named(folder: Path, content: str | None):
    if content is None:
        (folder / "config.json").unlink()
    else:
        (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        load_config(folder)


def test_a_folder_without_weights_says_what_it_needs(folder: Path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        load_model(folder)


def test_a_pickle_in_the_working_folder_is_refused_with_whole_paths(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "model.safetensors").rename(folder / "pytorch_model-00001-of-00001.bin")
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=f"python -c .*{folder}.*{folder}-safetensors"):
        load_model(".")


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 50_000, 1])
def test_what_is_saved_loads_again(folder: Path, tmp_path: Path, dtype: torch.dtype | None, max_shard_bytes: int):
    model = load_model(folder)
    save_model(model, tmp_path / "out", dtype=dtype, max_shard_bytes=max_shard_bytes)
    again = load_model(tmp_path / "out")
    assert again.config == model.config
    stored = dtype or torch.float32
    assert all(
        torch.equal(p.to(stored).float(), q) for p, q in zip(model.parameters(), again.parameters(), strict=True)
    )
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    assert (len(sizes) == 1) == (max_shard_bytes == 5_000_000_000)


def test_saving_again_leaves_no_file_of_the_save_before(folder: Path, tmp_path: Path):
    model = load_model(folder)
    save_model(model, tmp_path, max_shard_bytes=50_000)
    save_model(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["config.json", "model.safetensors"]
    save_model(model, tmp_path, max_shard_bytes=50_000)
    assert not (tmp_path / "model.safetensors").exists()
    assert same_parameters(load_model(tmp_path), model)


def test_a_model_may_be_saved_where_it_was_loaded_from(folder: Path):
    model = load_model(folder)
    save_model(model, folder)
    assert same_parameters(load_model(folder), model)


def test_a_dtype_that_checkpoints_do_not_hold_is_refused(tmp_path: Path):
    model = BloomModel(BloomConfig(hidden_size=8, n_layer=1, n_head=2, vocab_size=11))
    with pytest.raises(ValueError, match=r"torch\.float64; pass dtype= float32"):
        save_model(model, tmp_path, dtype=torch.float64)
