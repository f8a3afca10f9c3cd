"""The gradient of a weight that is looked up and multiplied by."""

import pytest
import torch
from torch import Tensor, nn

from bloom.linear_cross_entropy import linear_cross_entropy
from bloom.tied_gradient import TiedGradient

ROWS, WIDTH = 40, 8


def gradient(micro_batches: list[Tensor], tied: TiedGradient | None) -> Tensor:
    """Of micro-batches one after another, through autograd alone or tied."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(ROWS, WIDTH))
    for ids in micro_batches:
        rows = tied.rows(ids, weight) if tied else nn.functional.embedding(ids, weight)
        head = tied.head(weight) if tied else weight
        (linear_cross_entropy(torch.tanh(rows), head, ids.roll(-1)) / len(ids)).backward()
    assert weight.grad is not None
    return weight.grad


def test_it_equals_autograds_with_repeated_ids_and_several_micro_batches():
    micro_batches = [torch.randint(0, 7, (30,)), torch.randint(0, ROWS, (12,))]
    torch.testing.assert_close(gradient(micro_batches, TiedGradient()), gradient(micro_batches, None))


def test_there_is_no_second_gradient_of_all_rows(monkeypatch):
    made = []
    monkeypatch.setattr(torch, "zeros_like", lambda like, make=torch.zeros_like: made.append(make(like)) or made[-1])
    got = gradient([torch.tensor([1, 2, 2, 5])], TiedGradient())
    assert [one.data_ptr() for one in made] == [got.data_ptr()]  # the head's own, neither copied nor added to another


def test_a_loss_that_is_not_given_the_tied_head_is_an_error():
    weight, tied = nn.Parameter(torch.randn(ROWS, WIDTH)), TiedGradient()
    rows = tied.rows(torch.tensor([1, 2]), weight)
    with pytest.raises(RuntimeError, match="pass `head` to the loss"):
        rows.sum().backward()


def test_a_frozen_weight_is_looked_up_all_the_same():
    weight, tied = torch.randn(ROWS, WIDTH), TiedGradient()
    assert torch.equal(tied.rows(torch.tensor([3]), weight), weight[3:4])
    assert tied.head(weight) is weight
