"""Bias and tanh-GELU in Triton; the twin in naive/bias_gelu.py is the definition. T = tokens, F = width of the MLP."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # numbers per program
NUM_WARPS = 4


@triton.jit  # type: ignore[untyped-decorator]
def bias_gelu_kernel(  # type: ignore[no-untyped-def]
    out_ptr,  # (T, F), contiguous
    x_ptr,  # (T, F)
    bias_ptr,  # (F,)
    size,
    stride_row,
    block: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * block + tl.arange(0, block)
    in_row = columns < size
    x = tl.load(x_ptr + row * stride_row + columns, mask=in_row, other=0.0).to(tl.float32)
    x += tl.load(bias_ptr + columns, mask=in_row, other=0.0).to(tl.float32)
    # (1 + tanh(u)) / 2 = sigmoid(2 u); 1.5957... = 2 sqrt(2 / pi)
    out = x * tl.sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))
    tl.store(out_ptr + row * size + columns, out.to(out_ptr.dtype.element_ty), mask=in_row)


def bias_gelu(x: Tensor, bias: Tensor, *, block: int = BLOCK, num_warps: int = NUM_WARPS) -> Tensor:
    """See naive.bias_gelu; x may be a view with rows apart."""
    num_rows, size = x.shape
    assert x.stride(1) == bias.stride(0) == 1
    out = torch.empty(num_rows, size, dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(size, block), num_rows)
    bias_gelu_kernel[grid](out, x, bias, size, x.stride(0), block=block, num_warps=num_warps)
    return out
