"""x W^T + b with weights in x's dtype or in int8. M = rows, K = inputs, N = outputs."""

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(M, N) in x's dtype from x (M, K), weight (N, K), bias (N,): fp32 sums, rounded once.

    The kernel adds over K in one fixed order whatever M is, so that a row's result does not depend on its neighbours.
    """
    out = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return out.to(x.dtype)


def int8_linear(
    x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None = None, *, block_m: int | None = None
) -> Tensor:
    """(M, N) in x's dtype from x (M, K), weight (N, K) int8, scales (N,) fp32, bias (N,): fp32 sums, rounded once.

    Row n of the weights is scales[n] * weight[n]. For small M, where the time is that of reading the weights.
    block_m: rows of the kernel's tile, by default the least that holds M. With one of the caller's own a row's result
    does not depend on its neighbours.
    """
    out = F.linear(x.float(), weight.float()) * scales
    return (out if bias is None else out + bias.float()).to(x.dtype)
