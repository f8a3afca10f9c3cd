"""int8 weights: what the numbers mean, and the modules that compute with them.

R = rows (outputs), C = columns (inputs), T = tokens. A weight (R, C) is kept as q (R, C) int8 in -127..127 and one fp32
scale per row: w ~ q * scale. It is symmetric, so products need no zero point. With dynamic activations each token's
inputs are rounded in the same way just before the product, which is then exact in int32.
Source: Dettmers et al. 2022, LLM.int8(), section 2 (vector-wise quantization); docs/quantization.md has file and loss.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels

Int8Weights = Literal["int8", "int8_dynamic"]
LARGEST = 127
_CHUNK_ROWS = 4096  # of a weight that are floats at once
_KERNEL_TOKENS = 64  # more are limited by multiplying, which cuBLAS does best, not by reading the weights
_INVARIANT_ROWS = 64  # of a tile: still bound by reading the weights, and few tiles for a prompt


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """q (R, C) int8 and scale (R,) fp32 of x (R, C): scale = max|x| / 127 of the row, q = x / scale, ties to even.

    A row of zeros has scale 0. Raises ValueError for numbers that are not finite.
    """
    q, scale = quantize_tokens(x)
    if not bool(scale.isfinite().all()):
        row = int((~scale.isfinite()).nonzero()[0])
        raise ValueError(f"row {row} holds a number that is not finite; int8 cannot express it, use float weights")
    return q, scale


def dequantize(q: Tensor, scale: Tensor) -> Tensor:
    """The fp32 numbers (R, C) that q (R, C) and scale (R,) stand for."""
    return q.float().mul_(scale[:, None])


def int8_linear(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """x (T, C) times the transposed weight q (R, C), scale (R,): (T, R) in x's format.

    q's integers are exact in every float format, so they are multiplied as they are, and the sums scaled.
    """
    if x.is_cuda and len(x) <= _KERNEL_TOKENS:
        return kernels.int8_linear(x, q, scale)
    out = x.new_empty(len(x), len(q))
    for start in range(0, len(q), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        if x.dtype == torch.float16:  # sums of integers pass its largest number, 65,504; its weights are exact enough
            out[:, rows] = F.linear(x, dequantize(q[rows], scale[rows]).to(x.dtype))
        else:
            torch.mul(F.linear(x, q[rows].to(x.dtype)), scale[rows], out=out[:, rows])
    return out


def invariant_int8_linear(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """As int8_linear; on CUDA a row's result does not depend on its neighbours, however many there are."""
    return kernels.int8_linear(x, q, scale, block_m=_INVARIANT_ROWS)


def int8_dynamic_linear(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """As int8_linear, with each token's inputs rounded to int8: integer products, summed exactly."""
    x_q, x_scale = quantize_tokens(x)
    sums = _int_matmul(x_q, q)  # (T, R) int32
    return (sums.float() * x_scale[:, None] * scale).to(x.dtype)


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize` of activations x (T, C), without its check: what is not finite stays so, in the scale."""
    x = x.float()
    scale = x.abs().amax(dim=1) / LARGEST
    q = (x / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round_().clamp_(-LARGEST, LARGEST)
    return q.to(torch.int8), scale


def _int_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (T, C) times transposed b (R, C), both int8: (T, R) int32."""
    if not a.is_cuda:
        return torch._int_mm(a, b.t())
    # cuBLASLt wants more than 16 rows and sizes in eights.
    rows, columns, outputs = max(32, -(-len(a) // 8) * 8), -a.shape[1] % 8, -len(b) % 8
    padded = F.pad(a, (0, columns, 0, rows - len(a)))
    return torch._int_mm(padded, F.pad(b, (0, columns, 0, outputs)).t())[: len(a), : len(b)]


class Int8Linear(nn.Module):
    """nn.Linear with an int8 weight; buffers, so that `parameters()` are what the model computes in."""

    weight: Tensor  # (R, C) int8
    weight_scale: Tensor  # (R,) fp32
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, *, dynamic: bool) -> None:
        """Of the linear layer's shape and bias; the weights are not taken over."""
        super().__init__()
        _add_buffers(self, linear.weight)
        self.register_parameter("bias", linear.bias)
        self.multiply = int8_dynamic_linear if dynamic else int8_linear

    def forward(self, x: Tensor) -> Tensor:
        out = self.multiply(x, self.weight, self.weight_scale)
        return out if self.bias is None else out.add_(self.bias)


class Int8Embedding(nn.Module):
    """The embedding and the head that is tied to it."""

    weight: Tensor  # (V, H) int8
    weight_scale: Tensor  # (V,) fp32

    def __init__(self, embedding: nn.Embedding, *, dynamic: bool) -> None:
        super().__init__()
        _add_buffers(self, embedding.weight)
        self._dtype = embedding.weight.dtype
        self.multiply = int8_dynamic_linear if dynamic else int8_linear

    def forward(self, ids: Tensor) -> Tensor:
        return dequantize(self.weight[ids], self.weight_scale[ids]).to(self._dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, V) from hidden (M, H)."""
        return self.multiply(hidden, self.weight, self.weight_scale)


def to_int8(model: nn.Module, weights: Int8Weights) -> None:
    """Replace every linear layer and embedding in `model` by its int8 form, empty and on the same device."""
    dynamic = weights == "int8_dynamic"
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.Linear):
                setattr(parent, name, Int8Linear(module, dynamic=dynamic))
            elif isinstance(module, nn.Embedding):
                setattr(parent, name, Int8Embedding(module, dynamic=dynamic))


def _add_buffers(module: nn.Module, weight: Tensor) -> None:
    module.register_buffer("weight", torch.empty(weight.shape, dtype=torch.int8, device=weight.device))
    module.register_buffer("weight_scale", torch.empty(len(weight), device=weight.device))
