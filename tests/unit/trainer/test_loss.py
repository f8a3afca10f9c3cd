"""The loss of a micro-batch: what counts, what does not, and packed equal to alone."""

import dataclasses

import pytest
import torch

from bloom.alibi import slopes
from bloom.attention import DenseCausalAttention
from bloom.config import BloomConfig
from bloom.model import BloomModel
from services.trainer.dataset import IGNORE
from services.trainer.loss import LanguageModelLoss

CONFIG = BloomConfig(vocab_size=50, hidden_size=24, n_layer=2, n_head=3)


def make_model() -> BloomModel:
    model = BloomModel(CONFIG)
    model.initialize(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    return model


def loss_and_gradients(inputs, targets, segments=None):
    model = LanguageModelLoss(make_model())
    loss = model(torch.tensor(inputs), torch.tensor(targets), None if segments is None else torch.tensor(segments), 1.0)
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()]


A = ([4, 5, 6, 7], [IGNORE, 6, 7, 2])
B = ([9, 8, 7], [8, 7, 2])


def test_a_packed_window_gives_the_losses_and_gradients_of_its_examples_alone():
    packed = loss_and_gradients([A[0] + B[0] + [3]], [A[1] + B[1] + [IGNORE]], [[0] * 4 + [1] * 3 + [2]])
    alone = [loss_and_gradients([inputs], [targets]) for inputs, targets in (A, B)]
    torch.testing.assert_close(packed[0], alone[0][0] + alone[1][0], rtol=1e-5, atol=1e-5)
    for got, first, second in zip(packed[1], alone[0][1], alone[1][1], strict=True):
        torch.testing.assert_close(got, first + second, rtol=1e-5, atol=1e-5)


def test_without_segments_the_examples_would_see_each_other():
    packed = loss_and_gradients([A[0] + B[0]], [A[1] + B[1]], [[0] * 7])[0]
    alone = sum(loss_and_gradients([inputs], [targets])[0] for inputs, targets in (A, B))
    assert abs(packed - alone) > 1e-2


def test_one_module_serves_training_and_evaluation_and_batches_of_any_shape():
    """The mask that is kept between calls fits the call: its batch, its length, and no dropout in evaluation."""
    model = make_model()
    model.config = dataclasses.replace(CONFIG, attention_dropout=0.5)
    module = LanguageModelLoss(model)

    def loss_of(*rows: list[int], seed: int = 0) -> float:
        inputs = torch.tensor(rows)
        return module(inputs, inputs.roll(-1, 1), None, 1.0, seed).item()

    module.train()
    assert loss_of(A[0]) != loss_of(A[0], seed=9)  # dropout
    assert loss_of(A[0], seed=9) == loss_of(A[0], seed=9)
    module.eval()
    alone = loss_of(A[0]), loss_of(B[0])
    assert loss_of(A[0]) == alone[0]
    assert loss_of(A[0], A[0], A[0]) == pytest.approx(3 * alone[0], rel=1e-5)
    assert loss_of(B[0]) == alone[1]
    module.train()
    assert loss_of(A[0]) != alone[0]


def test_targets_without_loss_change_nothing():
    some = loss_and_gradients([A[0]], [[IGNORE, IGNORE, IGNORE, 2]])[0]
    model = make_model()
    logits = model.logits(model(torch.tensor(A[0]), DenseCausalAttention(slopes(CONFIG.n_head), 1, len(A[0]))))
    torch.testing.assert_close(some, torch.nn.functional.cross_entropy(logits[-1:], torch.tensor([2])))
