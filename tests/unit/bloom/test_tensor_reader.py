"""Parts of tensors, out of files that transformers wrote; what a process holds while loading: test_load_memory."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from bloom.weights import TensorReader
from tests.support.bloom_models import make_hf_folder

WEIGHT = "h.1.mlp.dense_4h_to_h.weight"  # (48, 192)
BIAS = "h.0.self_attention.query_key_value.bias"  # (144,)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("reader"), sharded=True)


@pytest.fixture(scope="module")
def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors = [load_file(file) for file in folder.glob("*.safetensors")]
    return {name.removeprefix("transformer."): tensor for part in tensors for name, tensor in part.items()}


@pytest.fixture(scope="module")
def reader(folder: Path):
    with TensorReader(folder) as reader:
        yield reader


def bound(limit: int) -> st.SearchStrategy[int | None]:
    return st.none() | st.integers(-limit - 3, limit + 3)


@settings(deadline=None)
@given(st.tuples(bound(48), bound(48)), st.tuples(bound(192), bound(192)))
def test_any_part_of_a_matrix_equals_the_slice_of_the_whole(reader: TensorReader, stored, rows, columns):
    part = reader.read(WEIGHT, slice(*rows), slice(*columns))
    assert torch.equal(part, stored[WEIGHT][slice(*rows), slice(*columns)])


def test_every_tensor_is_read_whole_by_its_name(reader: TensorReader, stored):
    assert reader.checkpoint.tensors.keys() == stored.keys()
    assert all(torch.equal(reader.read(name), stored[name]) for name in stored)


def test_a_vector_is_cut_by_its_rows(reader: TensorReader, stored):
    assert torch.equal(reader.read(BIAS, slice(24, 48)), stored[BIAS][24:48])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_part_is_converted_in_pieces_to_the_format_asked_for(reader: TensorReader, stored, dtype, monkeypatch):
    monkeypatch.setattr("bloom.tensor_reader.PIECE_BYTES", 5 * 96 * 4 + 1)  # five rows, and the last piece is shorter
    part = reader.read(WEIGHT, slice(1, 48), slice(96, 192), dtype=dtype)
    assert torch.equal(part, stored[WEIGHT][1:48, 96:192].to(dtype))


def test_a_part_is_read_into_a_tensor_of_the_callers(reader: TensorReader, stored):
    out = torch.full((4, 192), torch.nan)
    assert reader.read(WEIGHT, slice(8, 11), out=out[1:]) is not None
    assert torch.equal(out[1:], stored[WEIGHT][8:11])
    assert out[0].isnan().all()


def test_a_destination_of_another_shape_is_refused(reader: TensorReader):
    with pytest.raises(ValueError, match=r"out is \[3, 192\] of .* tensor of shape \[4, 192\]"):
        reader.read(WEIGHT, slice(0, 4), out=torch.empty(3, 192))
    with pytest.raises(ValueError, match="contiguous"):
        reader.read(WEIGHT, slice(0, 4), out=torch.empty(192, 4).T)


def test_steps_are_refused(reader: TensorReader):
    with pytest.raises(ValueError, match=r"step 2; .* use step 1"):
        reader.read(WEIGHT, slice(None, None, 2))


def test_a_file_that_shrinks_while_it_is_read_is_an_error_not_a_crash(folder: Path, tmp_path: Path):
    copy = shutil.copytree(folder, tmp_path / "model")
    with TensorReader(copy) as reader:
        stored = reader.checkpoint.tensors[WEIGHT]
        with (copy / stored.file).open("r+b") as file:
            file.truncate(stored.start + 100)
        with pytest.raises(ValueError, match=rf"{stored.file} ended within tensor transformer.{WEIGHT}"):
            reader.read(WEIGHT)
