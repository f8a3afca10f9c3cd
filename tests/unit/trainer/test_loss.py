"""The loss of a micro-batch: what counts, what does not, and packed equal to alone."""

import dataclasses

import numpy as np
import pytest
import torch

from bloom.alibi import slopes
from bloom.attention import DenseCausalAttention
from bloom.config import BloomConfig
from bloom.model import BloomModel
from services.trainer.dataset import IGNORE
from services.trainer.loss import LanguageModelLoss
from services.trainer.target_weights import target_weights

CONFIG = BloomConfig(vocab_size=50, hidden_size=24, n_layer=2, n_head=3)


def make_model() -> BloomModel:
    model = BloomModel(CONFIG)
    model.initialize(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    return model


def loss_and_gradients(inputs, targets, segments=None, weights=None):
    model = LanguageModelLoss(make_model())
    segments = None if segments is None else torch.tensor(segments)
    loss = model(torch.tensor(inputs), torch.tensor(targets), segments, 1.0, target_weights=weights)
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()]


A = ([4, 5, 6, 7], [IGNORE, 6, 7, 2])
B = ([9, 8, 7], [8, 7, 2])
TURNS = ([4, 5, 6, 7, 8, 9], [5, IGNORE, IGNORE, 8, IGNORE, 2])  # targets in several places
PACKED = ([A[0] + B[0], TURNS[0] + [3]], [A[1] + B[1], TURNS[1] + [IGNORE]], [[0] * 4 + [1] * 3, [0] * 6 + [1]])


def test_packed_windows_give_the_losses_and_gradients_of_their_examples_alone():
    packed = loss_and_gradients(*PACKED)
    alone = [loss_and_gradients([inputs], [targets]) for inputs, targets in (A, B, TURNS)]
    torch.testing.assert_close(packed[0], sum(loss for loss, _ in alone), rtol=1e-5, atol=1e-5)
    for got, *of_examples in zip(packed[1], *(gradients for _, gradients in alone), strict=True):
        torch.testing.assert_close(got, sum(of_examples), rtol=1e-5, atol=1e-5)


def test_normalised_examples_give_packed_the_mean_losses_and_gradients_of_each_alone():
    weights = torch.from_numpy(target_weights(*map(np.array, PACKED[1:])))
    packed = loss_and_gradients(*PACKED, weights)
    alone = [loss_and_gradients([inputs], [targets]) for inputs, targets in (A, B, TURNS)]
    counts = [sum(target != IGNORE for target in targets) for _, targets in (A, B, TURNS)]
    torch.testing.assert_close(packed[0], mean_sum([loss for loss, _ in alone], counts), rtol=1e-5, atol=1e-5)
    for got, *of_examples in zip(packed[1], *(gradients for _, gradients in alone), strict=True):
        torch.testing.assert_close(got, mean_sum(of_examples, counts), rtol=1e-5, atol=1e-5)


def test_weights_that_count_targets_by_window_would_be_noticed():
    by_window = torch.from_numpy(target_weights(np.array(PACKED[1]), np.zeros((2, 7), int)))
    by_example = torch.from_numpy(target_weights(*map(np.array, PACKED[1:])))
    assert abs(loss_and_gradients(*PACKED, by_window)[0] - loss_and_gradients(*PACKED, by_example)[0]) > 1e-2


def mean_sum(sums, counts):
    """Of each example's sum over its targets, as the mean over them."""
    return sum(total / count for total, count in zip(sums, counts, strict=True))


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
