"""Bias and BLOOM's GELU, between the two products of the MLP. T = tokens, F = its width."""

import torch.nn.functional as F
from torch import Tensor


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias) by the tanh formula, in fp32, rounded to x's dtype; x (T, F), bias (F,).

    Source: Hendrycks and Gimpel 2016, section 2; transformers' bloom_gelu_forward.
    """
    return F.gelu(x.float() + bias.float(), approximate="tanh").to(x.dtype)
