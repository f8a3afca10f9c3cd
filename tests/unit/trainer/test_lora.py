"""Adapters: nothing changes before training, and the parts that ranks have are parts of one adapter."""

import pytest
import torch

from bloom.config import BloomConfig
from bloom.model import BloomModel
from bloom.parallel import Shard
from bloom.parallelize import cut_to_shard
from services.trainer.config import LoraConfig
from services.trainer.lora import LoraLinear, add_adapters
from services.trainer.loss import LanguageModelLoss

INPUTS = torch.tensor([[4, 5, 6, 7]])
TARGETS = torch.tensor([[5, 6, 7, 2]])


def make_model() -> BloomModel:
    model = BloomModel(BloomConfig(vocab_size=50, hidden_size=24, n_layer=2, n_head=3))
    model.initialize(0)
    return model


def loss(model: BloomModel) -> torch.Tensor:
    return LanguageModelLoss(model)(INPUTS, TARGETS, None, 1.0)


def test_fresh_adapters_change_nothing_and_are_all_that_trains():
    model = make_model()
    before = loss(model)
    add_adapters(model, LoraConfig(rank=2), seed=1)
    torch.testing.assert_close(loss(model), before)
    assert {name.rsplit(".", 1)[1] for name, p in model.named_parameters() if p.requires_grad} == {"lora_a", "lora_b"}
    assert sum(isinstance(module, LoraLinear) for module in model.modules()) == 4 * 2


@pytest.mark.parametrize("tp_rank", [0, 1, 2])
@pytest.mark.parametrize("pp_rank", [0, 1])
def test_a_ranks_part_of_an_adapter_changes_its_part_of_the_layer(tp_rank: int, pp_rank: int):
    whole, cut = make_model(), make_model()
    shard = Shard.of(whole.config, tp_rank=tp_rank, tp_size=3, pp_rank=pp_rank, pp_size=2)
    add_adapters(whole, LoraConfig(rank=2), seed=1)
    add_adapters(cut_to_shard(cut, shard), LoraConfig(rank=2), 1, shard)
    layers = {name: module for name, module in cut.named_modules() if isinstance(module, LoraLinear)}
    assert len(layers) == 4
    for name, part in layers.items():
        full = whole.get_submodule(name)
        b = torch.randn_like(full.lora_b)
        rows, _ = shard.part(whole.config, f"{name}.lora_b")
        assert b[rows].shape == part.lora_b.shape
        changed = (b @ full.lora_a)[shard.part(whole.config, f"{name}.weight")]
        torch.testing.assert_close(b[rows] @ part.lora_a, changed)
