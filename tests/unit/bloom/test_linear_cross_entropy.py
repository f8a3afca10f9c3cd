"""The loss without whole logits, against plain cross-entropy; over ranks: integration/bloom/test_tensor_parallel."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bloom.linear_cross_entropy import linear_cross_entropy
from services.common.settings import ROOT


def inputs(rows: int, vocab: int, hidden: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and a head that require gradients, and targets."""
    generator = torch.Generator().manual_seed(rows * 1000 + vocab)
    x = (3 * torch.randn(rows, hidden, generator=generator)).to(dtype).requires_grad_()
    weight = torch.randn(vocab, hidden, generator=generator).to(dtype).requires_grad_()
    return x, weight, torch.randint(vocab, (rows,), generator=generator)


def plain(x: Tensor, weight: Tensor, targets: Tensor, row_weights: Tensor | None = None) -> Tensor:
    losses = F.cross_entropy(F.linear(x, weight).float(), targets, reduction="none")
    return (losses if row_weights is None else losses * row_weights).sum()


def random_row_weights(rows: int) -> Tensor:
    """Of any size, one of them 0."""
    weights = 4 * torch.rand(rows, generator=torch.Generator().manual_seed(rows))
    weights[rows // 2 :][:1] = 0
    return weights


def loss_and_gradients(loss: Tensor, *tensors: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss * 0.37, tensors)]


@settings(deadline=None)
@given(
    rows=st.integers(0, 40),
    vocab=st.integers(1, 300),
    hidden=st.integers(1, 48),
    chunk=st.integers(1, 50),
    weighted=st.booleans(),
)
def test_loss_and_gradients_equal_plain_cross_entropy_whatever_the_chunk(rows, vocab, hidden, chunk, weighted):
    x, weight, targets = inputs(rows, vocab, hidden)
    row_weights = random_row_weights(rows) if weighted else None
    expected = loss_and_gradients(plain(x, weight, targets, row_weights), x, weight)
    chunked = linear_cross_entropy(x, weight, targets, row_weights=row_weights, chunk_bytes=chunk * 4 * vocab)
    greatest = F.linear(x, weight).abs().max().item() if rows else 0.0  # as a logit is rounded, so is its probability
    for got, want in zip(loss_and_gradients(chunked, x, weight), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6 * max(10.0, greatest))


def test_in_bf16_the_loss_is_summed_in_fp32():
    x, weight, targets = inputs(40, 300, 32, torch.bfloat16)
    loss = linear_cross_entropy(x, weight, targets, chunk_bytes=7 * 4 * 300)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain(x, weight, targets).item(), rel=1e-6)


def test_a_frozen_head_gets_no_gradient():
    x, weight, targets = inputs(10, 50, 8)
    weight.requires_grad_(False)
    linear_cross_entropy(x, weight, targets).backward()
    assert x.grad is not None
    assert weight.grad is None


def test_padding_rows_of_the_head_take_no_part():
    x, weight, targets = inputs(10, 50, 8)
    expected = loss_and_gradients(plain(x, weight, targets), x, weight)
    padded = torch.cat([weight.detach(), torch.full((6, 8), 100.0)]).requires_grad_()
    got = loss_and_gradients(linear_cross_entropy(x, padded, targets, vocabulary=slice(0, 50)), x, padded)
    torch.testing.assert_close(got[:2], expected[:2])
    torch.testing.assert_close(got[2][:50], expected[2])
    assert not got[2][50:].any()


MEASURE = """
import torch
from benchmarks.protocol import status_bytes
from bloom.linear_cross_entropy import linear_cross_entropy
x = torch.randn(2048, 1024, requires_grad=True)
weight = torch.zeros(250880, 1024, requires_grad=True)
weight.grad, x.grad = torch.zeros_like(weight), torch.zeros_like(x)  # what is there in any case
gradient = torch.zeros_like(weight)  # what backward hands over before it is added
before = status_bytes("VmHWM")  # rusage's ru_maxrss begins with what the process it was forked from held
del gradient
targets = torch.arange(2048)
linear_cross_entropy(x[:{rows}], weight, targets[:{rows}]).backward()
print(status_bytes("VmHWM") - before)
"""


def test_at_2048_tokens_of_560m_it_takes_less_than_300_mb_beside_parameters_and_gradients():
    """Of which 512 rows, two whole chunks and more, are computed: the others would take their place."""
    script = MEASURE.format(rows=512)
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 100e6 < int(result.stdout) < 300e6
