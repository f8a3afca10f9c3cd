"""LayerNorm in Triton, a row per program; the twin in naive/layer_norm.py is the definition.

T = tokens, H = hidden size. The row stays in registers, so that mean and variance are taken of the same fp32 numbers
in two passes, and memory is read once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def normalized(x, in_row, weight_ptr, bias_ptr, columns, eps, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """LayerNorm of x (block_h,), whose padding is 0."""
    mean = tl.sum(x, axis=0) / size
    centred = tl.where(in_row, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / size
    weight = tl.load(weight_ptr + columns, mask=in_row, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=in_row, other=0.0).to(tl.float32)
    return centred * (1.0 / tl.sqrt(variance + eps)) * weight + bias


@triton.jit  # type: ignore[untyped-decorator]
def layer_norm_kernel(  # type: ignore[no-untyped-def]
    out_ptr,  # (T, H), contiguous
    x_ptr,  # (T, H)
    weight_ptr,  # (H,)
    bias_ptr,  # (H,)
    eps,
    stride_row,
    size: tl.constexpr,  # H
    block_h: tl.constexpr,  # H rounded up to a power of two
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block_h)
    in_row = columns < size
    x = tl.load(x_ptr + row * stride_row + columns, mask=in_row, other=0.0).to(tl.float32)
    out = normalized(x, in_row, weight_ptr, bias_ptr, columns, eps, size)
    tl.store(out_ptr + row * size + columns, out.to(out_ptr.dtype.element_ty), mask=in_row)


def warps_of_row(size: int) -> int:
    """Up to 32 numbers a thread."""
    num_warps: int = triton.next_power_of_2(size) // 1024
    return min(16, max(1, num_warps))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See naive.layer_norm; x may be a view with rows apart."""
    num_rows, size = x.shape
    assert x.stride(1) == weight.stride(0) == bias.stride(0) == 1
    out = torch.empty(num_rows, size, dtype=x.dtype, device=x.device)
    layer_norm_kernel[(num_rows,)](
        out,
        x,
        weight,
        bias,
        eps,
        x.stride(0),
        size=size,
        block_h=triton.next_power_of_2(size),
        num_warps=warps_of_row(size),
    )
    return out
