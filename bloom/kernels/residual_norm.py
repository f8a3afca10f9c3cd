"""Residual add and LayerNorm in Triton, a row per program; the twin in naive/layer_norm.py is the definition.

T = tokens, H = hidden size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .row_norm import normalized, warps_of_row


@triton.jit  # type: ignore[untyped-decorator]
def add_layer_norm_kernel(  # type: ignore[no-untyped-def]
    out_ptr,  # (T, H), contiguous
    total_ptr,  # (T, H), contiguous
    x_ptr,  # (T, H)
    residual_ptr,  # (T, H)
    weight_ptr,  # (H,)
    bias_ptr,  # (H,)
    eps,
    stride_x,
    stride_residual,
    size: tl.constexpr,  # H
    block_h: tl.constexpr,  # H rounded up to a power of two
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, block_h)
    in_row = columns < size
    x = tl.load(x_ptr + row * stride_x + columns, mask=in_row, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + row * stride_residual + columns, mask=in_row, other=0.0).to(tl.float32)
    total = (x + residual).to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + row * size + columns, total, mask=in_row)
    out = normalized(total.to(tl.float32), in_row, weight_ptr, bias_ptr, columns, eps, size)
    tl.store(out_ptr + row * size + columns, out.to(out_ptr.dtype.element_ty), mask=in_row)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See naive.add_layer_norm; x and residual may be views with rows apart."""
    num_rows, size = x.shape
    assert x.stride(1) == residual.stride(1) == weight.stride(0) == bias.stride(0) == 1
    out, total = (torch.empty(num_rows, size, dtype=x.dtype, device=x.device) for _ in range(2))
    add_layer_norm_kernel[(num_rows,)](
        out,
        total,
        x,
        residual,
        weight,
        bias,
        eps,
        x.stride(0),
        residual.stride(0),
        size=size,
        block_h=triton.next_power_of_2(size),
        num_warps=warps_of_row(size),
    )
    return out, total
