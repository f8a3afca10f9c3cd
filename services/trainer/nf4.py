"""Linear layers whose frozen weights are kept in NF4 (bloom/nf4.py), by bitsandbytes, on a CPU as on a GPU.

T = packed tokens, R = rows (outputs), C = columns (inputs). A product makes the weight that it needs, in the inputs'
format, forward and backward.
"""

from typing import cast

import torch
from bitsandbytes import matmul_4bit
from bitsandbytes.functional import QuantState, dequantize_4bit, quantize_4bit
from torch import Tensor, nn

from bloom.nf4 import BLOCK
from bloom.tensor_parallel import ColumnParallelLinear, RowParallelLinear


class _Nf4(nn.Linear):
    packed: Tensor  # uint8, two weights each
    scale_bits: Tensor  # of a block's fp32 scale; as integers, for DeepSpeed casts buffers of floats
    shape: torch.Size  # (R, C)

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(T, R) of x (T, C)."""
        out: Tensor = matmul_4bit(x, self.packed, bias=bias, quant_state=_state(self.scale_bits, self.shape, x.dtype))
        return out


class Nf4Linear(_Nf4):
    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.bias)


class Nf4ColumnParallelLinear(_Nf4, ColumnParallelLinear):
    pass


class Nf4RowParallelLinear(_Nf4, RowParallelLinear):
    pass


_CLASSES: dict[type[nn.Linear], type[_Nf4]] = {
    nn.Linear: Nf4Linear,
    ColumnParallelLinear: Nf4ColumnParallelLinear,
    RowParallelLinear: Nf4RowParallelLinear,
}


def keep_in_nf4(linear: nn.Linear) -> None:
    """Replace the layer's weight, which is on no GPU yet: that never has to hold it whole."""
    packed, state = _quantize(linear.weight.detach())
    shape = linear.weight.shape
    del linear.weight
    linear.register_buffer("packed", packed)
    linear.register_buffer("scale_bits", state.absmax.view(torch.int32))
    linear.__class__ = _CLASSES[type(linear)]
    cast(_Nf4, linear).shape = shape


def as_kept(weight: Tensor) -> Tensor:
    """The fp32 numbers (R, C) that a run computed with in place of weight (R, C)."""
    packed, state = _quantize(weight.float())
    out: Tensor = dequantize_4bit(packed, state)
    return out


def _quantize(weight: Tensor) -> tuple[Tensor, QuantState]:
    packed, state = quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
    return packed, state


def _state(scale_bits: Tensor, shape: torch.Size, dtype: torch.dtype) -> QuantState:
    scales = scale_bits.view(torch.float32)
    return QuantState(scales, shape=shape, blocksize=BLOCK, quant_type="nf4", dtype=dtype)
