"""Adapters: nothing changes before training."""

import torch

from bloom.config import BloomConfig
from bloom.model import BloomModel
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
