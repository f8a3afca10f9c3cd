"""int8 checkpoints: written ahead of time, read, refused where they are damaged, and turned back."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BloomForCausalLM

from bloom.checkpoint import open_checkpoint
from bloom.config import BloomConfig
from bloom.int8 import dequantize, quantize
from bloom.parallel import Shard
from bloom.parallelize import cut_to_shard
from bloom.quantize import dequantize_checkpoint, main, quantize_checkpoint
from bloom.weights import TensorReader, load_model
from tests.support.bloom_models import bloom_logits, make_hf_folder, random_ids

MATRIX, SCALE = "transformer.h.1.mlp.dense_4h_to_h.weight", "transformer.h.1.mlp.dense_4h_to_h.weight_scale"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_hf_folder(tmp_path_factory.mktemp("source"), sharded=True, dtype=torch.bfloat16)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "LICENSE").write_text("Apache 2.0")
    return folder


@pytest.fixture(scope="module")
def quantized(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("int8") / "model"
    quantize_checkpoint(source, target)
    return target


@pytest.fixture
def copy(quantized: Path, tmp_path: Path) -> Path:
    return shutil.copytree(quantized, tmp_path / "copy")


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def rewrite_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("piece", [1, 500, 1 << 24], ids="pieces of {} numbers".format)
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 40_000], ids=["one file", "shards"])
def test_matrices_are_quantized_by_rows_and_vectors_kept(source: Path, tmp_path: Path, piece, shard_bytes, monkeypatch):
    monkeypatch.setattr("bloom.tensor_reader.PIECE_NUMBERS", piece)
    quantize_checkpoint(source, tmp_path / "int8", max_shard_bytes=shard_bytes)
    assert (len(list((tmp_path / "int8").glob("*.safetensors"))) > 1) == (shard_bytes == 40_000)
    with TensorReader(source) as before, TensorReader(tmp_path / "int8") as after:
        assert after.checkpoint.quantized
        for name in before.checkpoint.tensors:
            weight = before.read(name)
            if weight.dim() == 1:
                assert torch.equal(after.read(name), weight)
                continue
            q, scale = quantize(weight)
            assert torch.equal(after.read(name), q)
            assert torch.equal(after.read(f"{name}_scale"), scale)


def test_the_rest_of_the_folder_comes_along(source: Path, quantized: Path):
    config = json.loads((quantized / "config.json").read_text())
    assert config.pop("quantization_config") == {"quant_method": "anthesis_int8", "version": 1}
    assert config == json.loads((source / "config.json").read_text())
    assert {path.name for path in quantized.iterdir()} >= {"tokenizer.json", "LICENSE", "generation_config.json"}
    assert not list(quantized.glob("*.index.json"))


def test_an_int8_folder_loads_as_int8_or_as_the_floats_it_stands_for(source: Path, quantized: Path):
    on_load, stored = (load_model(folder, weights="int8").state_dict() for folder in (source, quantized))
    assert on_load.keys() == stored.keys()
    assert all(torch.equal(on_load[name], stored[name]) for name in stored)
    for name, weight in load_model(quantized).state_dict().items():
        exact = stored[name].float() if weight.dim() == 1 else dequantize(stored[name], stored[f"{name}_scale"])
        assert torch.equal(weight, exact)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_reads_its_part_of_an_int8_folder(quantized: Path, rank: int):
    shard = Shard.of(open_checkpoint(quantized).config, tp_rank=rank, tp_size=3)
    part = load_model(quantized, shard=shard, weights="int8").state_dict()
    for name, weight in cut_to_shard(load_model(quantized), shard).state_dict().items():
        if weight.dim() > 1:
            assert torch.equal(dequantize(part[name], part[f"{name}_scale"]), weight)


@pytest.mark.parametrize("weights", ["int8", "int8_dynamic"])
def test_logits_stay_close_to_the_source_and_a_wrong_scale_is_seen(source: Path, copy: Path, weights: str):
    ids = random_ids(40, 211)
    exact = bloom_logits(load_model(source), ids)

    def distance(folder: Path) -> float:
        return ((bloom_logits(load_model(folder, weights=weights), ids) - exact).norm() / exact.norm()).item()

    assert distance(copy) < 0.05
    rewrite(copy, lambda tensors: tensors[SCALE][::2].mul_(2))
    assert distance(copy) > 0.1


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16])
def test_dequantized_it_is_a_folder_for_transformers(quantized: Path, tmp_path: Path, dtype):
    dequantize_checkpoint(quantized, tmp_path / "floats", dtype=dtype)
    stored = dtype or torch.bfloat16
    model, info = BloomForCausalLM.from_pretrained(tmp_path / "floats", dtype=stored, output_loading_info=True)
    assert not any(info.values())
    ours = load_model(quantized, dtype=stored).state_dict()
    theirs = {name.removeprefix("transformer."): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "quantization_config" not in json.loads((tmp_path / "floats" / "config.json").read_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(SCALE), r"missing tensor h\.1\.mlp\.dense_4h_to_h\.weight_scale"),
        (
            lambda t: t.update({SCALE: t[SCALE][:-1].clone()}),
            r"_scale in .* has shape \[47\], .* asks for \[48\]",
        ),
        (lambda t: t.update({MATRIX: t[MATRIX][:, :-1].clone()}), r"dense_4h_to_h\.weight in .* has shape \[48, 191\]"),
        (
            lambda t: t.update({MATRIX: t[MATRIX].float()}),
            r"is F32; in int8 weights it is I8: quantize anew",
        ),
        (lambda t: t.update({SCALE: t[SCALE].half()}), r"weight_scale in .* is F16; in int8 weights it is F32"),
        (
            lambda t: t[SCALE][5:6].fill_(torch.nan),
            r"_scale in .* has scale nan in row 5, .* quantize the original",
        ),
        (lambda t: t[SCALE][7:8].fill_(-torch.inf), r"has scale -inf in row 7"),
        (lambda t: t[SCALE][3:4].fill_(-0.25), r"has scale -0\.25 in row 3, a scale is finite and not negative"),
    ],
)
def test_a_damaged_int8_file_is_refused_with_the_tensor_the_value_and_a_remedy(copy: Path, change, message):
    rewrite(copy, change)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(copy)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"quant_method": "gptq", "bits": 4},
            r"quant_method='gptq', only 'anthesis_int8' is supported; .*bloom\.quantize",
        ),
        ({"quant_method": "anthesis_int8", "version": 2}, r"version=2, this release reads 1; update it"),
        ({"quant_method": "anthesis_int8"}, r"version=None, this release reads 1"),
        ("int8", r"quant_method='int8'"),
        (None, r"word_embeddings\.weight in .* is I8, but config\.json has no quantization_config; copy"),
    ],
)
def test_another_quantization_than_ours_is_refused(copy: Path, said, message):
    rewrite_config(copy, quantization_config=said)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(copy)


def test_a_configuration_of_int8_weights_is_a_bloom_like_any_other(quantized: Path, source: Path):
    configs = [json.loads((folder / "config.json").read_text()) for folder in (quantized, source)]
    assert BloomConfig.from_hf(configs[0]) == BloomConfig.from_hf(configs[1])


def test_numbers_that_are_not_finite_are_refused_and_leave_no_folder(source: Path, tmp_path: Path, capsys):
    broken = shutil.copytree(source, tmp_path / "broken")
    name = "transformer.h.0.self_attention.dense.weight"
    file = broken / json.loads((broken / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(file)
    tensors[name][9, 4] = torch.inf
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{re.escape(name)} in {file.name}, from row 0: row 9 holds a number"):
        quantize_checkpoint(broken, tmp_path / "int8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


def test_the_command_goes_both_ways_and_refuses_what_is_done_already(source: Path, tmp_path: Path, monkeypatch, capsys):
    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["quantize", *map(str, arguments)])
        return main()

    int8, floats = tmp_path / "int8", tmp_path / "floats"
    assert run(source, int8) == 0
    assert run("--dequantize", "--dtype", "float16", int8, floats) == 0
    assert open_checkpoint(floats).float_dtype == "F16"
    capsys.readouterr()
    assert run(int8, tmp_path / "again") == 1
    assert "is in int8 already; serve or import it as it is" in capsys.readouterr().err
    assert run("--dequantize", floats, tmp_path / "again") == 1
    assert "is not in int8; use it as it is" in capsys.readouterr().err
    assert run(source, int8) == 1
    assert "exists and is no empty folder; name a new one" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--dtype", "float16", source, tmp_path / "again")
    assert "give both" in capsys.readouterr().err
