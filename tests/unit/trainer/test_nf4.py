"""Frozen weights in NF4: a layer computes with what they stand for, on every rank with the same."""

import pytest
import torch
from torch import nn

from bloom.nf4 import BLOCK, BYTES
from services.trainer.nf4 import as_kept, keep_in_nf4

R, C = 96, 4 * BLOCK


def make_linear(rows: slice = slice(None), columns: slice = slice(None)) -> nn.Linear:
    weight = torch.randn(R, C, generator=torch.Generator().manual_seed(0))[rows, columns]
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight = nn.Parameter(weight)
    return linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_those_of_the_weights_they_stand_for(dtype):
    linear = make_linear().to(dtype)
    x = torch.randn(5, C, dtype=dtype, requires_grad=True)
    weight = as_kept(make_linear().weight).to(dtype)
    expected = nn.functional.linear(x, weight, linear.bias)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)

    linear.weight = nn.Parameter(make_linear().weight.detach())  # in fp32, as a run begins
    keep_in_nf4(linear)
    linear.to(dtype)  # as DeepSpeed does, which must not touch the scales
    got = linear(x)
    (gradient,) = torch.autograd.grad(got.square().sum(), x)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert not torch.allclose(got, make_linear().to(dtype)(x), rtol=0, atol=1e-2)  # rounding can be seen


@pytest.mark.parametrize(("rows", "columns"), [(slice(32, 64), slice(None)), (slice(None), slice(BLOCK, 3 * BLOCK))])
def test_a_ranks_part_stands_for_a_part_of_the_whole(rows, columns):
    torch.testing.assert_close(
        as_kept(make_linear(rows, columns).weight), as_kept(make_linear().weight)[rows, columns], rtol=0, atol=0
    )


def test_it_takes_the_bytes_that_are_planned():
    linear = make_linear()
    keep_in_nf4(linear)
    kept = [*linear.buffers(), *(p for name, p in linear.named_parameters() if name != "bias")]
    assert sum(tensor.numel() * tensor.element_size() for tensor in kept) == BYTES * R * C
