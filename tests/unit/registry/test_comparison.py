"""Distances of two versions' tensors, against what PyTorch computes of whole ones."""

import pytest
import torch
from safetensors.torch import save

from bloom.tensors import expected_tensors
from services.common.errors import FailedPrecondition
from services.registry import comparison
from services.registry.comparison import compare
from services.registry.tables import ModelVersion
from tests.support.registry_data import TINY


def random_model(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"transformer.{name}": torch.randn(shape, generator=generator).to(dtype)
        for name, shape in expected_tensors(TINY).items()
    }


def stored(artifacts, tensors: dict[str, torch.Tensor], **metadata: str) -> ModelVersion:
    data = save(tensors, metadata=metadata or None)
    file = {"path": "model.safetensors", "digest": artifacts.write_bytes(data), "size_bytes": len(data)}
    adapter = {"path": "adapter/adapter_model.safetensors", "digest": artifacts.write_bytes(b"x"), "size_bytes": 1}
    return ModelVersion(name="sprout@1", files=[file, adapter])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_distances_are_those_of_whole_tensors_whatever_the_pieces(artifacts, dtype, monkeypatch):
    monkeypatch.setattr(comparison, "PIECE_NUMBERS", 7)
    mine, theirs = random_model(0, dtype), random_model(1, dtype)
    name = "transformer.h.1.mlp.dense_4h_to_h.weight"
    theirs = mine | {name: mine[name].clone()}
    theirs[name][3, 4] += 0.5
    theirs[name][11, 47] -= 2
    found = {item.tensor: item for item in compare(artifacts, stored(artifacts, mine), stored(artifacts, theirs))}
    apart = found.pop(name.removeprefix("transformer."))
    difference = mine[name].double() - theirs[name].double()
    assert (apart.num_values, apart.num_different) == (12 * 48, 2)
    assert apart.max_abs == difference.abs().max()
    assert apart.relative_l2 == pytest.approx(float(difference.norm() / mine[name].double().norm()), rel=1e-12)
    assert len(found) == len(mine) - 1
    assert {(item.num_different, item.max_abs, item.relative_l2) for item in found.values()} == {(0, 0.0, 0.0)}


def test_a_bit_that_changes_no_value_is_a_difference(artifacts):
    mine = random_model(0)
    mine["transformer.ln_f.bias"][:] = 0.0
    theirs = mine | {"transformer.ln_f.bias": -mine["transformer.ln_f.bias"]}
    different = [d for d in compare(artifacts, stored(artifacts, mine), stored(artifacts, theirs)) if d.num_different]
    assert [(d.tensor, d.num_different, d.max_abs) for d in different] == [("ln_f.bias", 12, 0.0)]


def test_other_bytes_around_the_same_numbers_are_no_difference(artifacts):
    mine = random_model(0)
    found = list(compare(artifacts, stored(artifacts, mine), stored(artifacts, mine, made="later")))
    assert len(found) == len(mine)
    assert not any(distance.num_different for distance in found)


def test_another_format_is_a_difference_throughout(artifacts):
    mine = random_model(0, torch.bfloat16)
    theirs = {name: tensor.float() for name, tensor in mine.items()}
    found = list(compare(artifacts, stored(artifacts, mine), stored(artifacts, theirs)))
    assert all((d.num_different, d.max_abs) == (d.num_values, 0.0) for d in found)


def test_versions_of_other_shapes_are_refused_with_the_tensor(artifacts):
    mine = random_model(0)
    theirs = {name: tensor for name, tensor in mine.items() if name != "transformer.ln_f.bias"}
    with pytest.raises(FailedPrecondition, match=r"ln_f\.bias is \[12\] in sprout@1 and absent in sprout@1"):
        list(compare(artifacts, stored(artifacts, mine), stored(artifacts, theirs)))
