"""What a rank loads is what it would cut out of the whole model; in int8 what it would cut out of that."""

from pathlib import Path

import pytest
import torch

from bloom.int8 import dequantize, quantize
from bloom.model import BloomModel
from bloom.parallel import Shard
from bloom.parallelize import cut_to_shard
from bloom.weights import load_config, load_model
from tests.support.bloom_models import make_hf_folder

RANKS = [(0, 1, 0, 1), (0, 2, 0, 1), (1, 2, 0, 1), (2, 3, 1, 2), (0, 3, 0, 3), (1, 3, 1, 3), (5, 6, 2, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hf_folder(tmp_path_factory.mktemp("shard"), n_layer=3, sharded=True)


def shard_of(folder: Path, rank: tuple[int, int, int, int]) -> Shard:
    tp_rank, tp_size, pp_rank, pp_size = rank
    return Shard.of(load_config(folder), tp_rank=tp_rank, tp_size=tp_size, pp_rank=pp_rank, pp_size=pp_size)


def same_state(a: BloomModel, b: BloomModel) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rank", RANKS, ids=str)
def test_a_rank_loads_what_it_would_cut_out_of_the_whole(folder: Path, rank, dtype):
    shard = shard_of(folder, rank)
    assert same_state(
        load_model(folder, dtype=dtype, shard=shard), cut_to_shard(load_model(folder, dtype=dtype), shard)
    )


@pytest.mark.parametrize("rank", RANKS, ids=str)
def test_a_rank_quantizes_what_it_loads(folder: Path, rank):
    shard = shard_of(folder, rank)
    loaded = load_model(folder, shard=shard, weights="int8").state_dict()
    for name, weight in cut_to_shard(load_model(folder), shard).state_dict().items():
        if weight.dim() == 1:
            assert torch.equal(loaded[name], weight)
            continue
        q, scale = quantize(weight)
        assert torch.equal(loaded[name], q)
        assert torch.equal(loaded[f"{name}_scale"], scale)


def test_weights_in_int8_stay_out_of_the_parameters_and_stand_for_the_floats(folder: Path):
    exact, model = load_model(folder), load_model(folder, weights="int8_dynamic")
    assert all(parameter.dim() == 1 for parameter in model.parameters())
    linear, int8 = exact.h[2].mlp.dense_4h_to_h, model.h[2].mlp.dense_4h_to_h
    steps = (dequantize(int8.weight, int8.weight_scale) - linear.weight).abs() / int8.weight_scale[:, None]
    assert steps.max() <= 0.501
