"""LayerNorm, alone and with the residual added first. T = tokens, H = hidden size."""

import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm of each row of x (T, H) in fp32, rounded to x's dtype once. Source: Ba et al. 2016."""
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps).to(x.dtype)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """LayerNorm of x + residual, each (T, H), and that sum, rounded to x's dtype: the next residual."""
    total = x + residual
    return layer_norm(total, weight, bias, eps), total
