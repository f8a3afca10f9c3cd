"""x W^T + b with int8 weights in Triton, for few rows; the twin in naive/linear.py is the definition.

M = rows, K = inputs, N = outputs. The time is that of reading the weights, once: a program takes block_n outputs, and
a part of K where there are not enough outputs to keep the GPU busy; a second kernel then adds the parts in order.
int8 is exact in every dtype of x, and the scale of a row of weights applies to the finished sum.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .registers import at_most

BLOCK_N = 32
BLOCK_K = {torch.float32: 32, torch.bfloat16: 128, torch.float16: 128}
NUM_WARPS, NUM_STAGES = 4, 3
BLOCK_MS = (16, 32, 64)  # rows of a tile: the least that holds M, else the last
ENOUGH_PROGRAMS = 512  # about four for each multiprocessor of a large GPU
LEAST_PART = 512  # inputs


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def int8_linear_kernel(  # type: ignore[no-untyped-def]
    out_ptr,  # (M, N), contiguous; or (parts, M, N) fp32 without scale and bias
    x_ptr,  # (M, K)
    weight_ptr,  # (N, K) int8
    scales_ptr,  # (N,) fp32
    bias_ptr,  # (N,) or None
    num_rows,
    num_outputs,
    num_inputs,
    part_inputs,  # inputs of a part, a multiple of block_k
    stride_x,
    stride_weight,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    is_part: tl.constexpr,
):
    rows = tl.program_id(0) * block_m + tl.arange(0, block_m)  # fastest: tiles of rows share the weights' cache lines
    outputs = tl.program_id(1) * block_n + tl.arange(0, block_n)
    part = tl.program_id(2)
    in_rows, in_outputs = rows < num_rows, outputs < num_outputs
    inputs = tl.arange(0, block_k)
    x_row = x_ptr + rows.to(tl.int64)[:, None] * stride_x
    weight_column = weight_ptr + outputs.to(tl.int64)[None, :] * stride_weight  # int64: more than 2^31 weights
    acc = tl.zeros((block_m, block_n), dtype=tl.float32)
    for start in tl.range(part * part_inputs, tl.minimum((part + 1) * part_inputs, num_inputs), block_k):
        k = start + inputs
        x = tl.load(x_row + k[None, :], mask=in_rows[:, None] & (k < num_inputs)[None, :], other=0.0)
        w = tl.load(weight_column + k[:, None], mask=(k < num_inputs)[:, None] & in_outputs[None, :], other=0)
        acc = tl.dot(x, w.to(tl.float32).to(x.dtype), acc, input_precision="ieee")
    target = rows.to(tl.int64)[:, None] * num_outputs + outputs[None, :]
    mask = in_rows[:, None] & in_outputs[None, :]
    if is_part:
        target += part.to(tl.int64) * num_rows * num_outputs
    else:
        acc *= tl.load(scales_ptr + outputs, mask=in_outputs, other=0.0)[None, :]
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + outputs, mask=in_outputs, other=0.0).to(tl.float32)[None, :]
    tl.store(out_ptr + target, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def add_parts_kernel(  # type: ignore[no-untyped-def]
    out_ptr,  # (M, N), contiguous
    parts_ptr,  # (parts, M, N) fp32
    scales_ptr,  # (N,) fp32
    bias_ptr,  # (N,) or None
    num_outputs,
    num_parts: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    outputs = tl.program_id(0) * block + tl.arange(0, block)
    in_row = outputs < num_outputs
    acc = tl.zeros((block,), dtype=tl.float32)
    for part in tl.static_range(num_parts):
        offsets = (part * tl.num_programs(1) + row) * num_outputs + outputs
        acc += tl.load(parts_ptr + offsets, mask=in_row, other=0.0)
    acc *= tl.load(scales_ptr + outputs, mask=in_row, other=0.0)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + outputs, mask=in_row, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * num_outputs + outputs, acc.to(out_ptr.dtype.element_ty), mask=in_row)


def num_parts_of(num_outputs: int, num_inputs: int) -> int:
    """Parts of K, by the shape of the weights alone: the order of the sums must not depend on the batch."""
    wanted: int = ENOUGH_PROGRAMS // triton.cdiv(num_outputs, BLOCK_N)
    return max(1, min(wanted, num_inputs // LEAST_PART, 16))


def int8_linear(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    *,
    block_m: int | None = None,
    num_parts: int | None = None,
    num_warps: int = NUM_WARPS,
    num_stages: int = NUM_STAGES,
) -> Tensor:
    """See naive.int8_linear. num_parts: of K."""
    (num_rows, num_inputs), num_outputs = x.shape, len(weight)
    assert x.stride(1) == weight.stride(1) == 1
    block_m = block_m or next((size for size in BLOCK_MS if size >= num_rows), BLOCK_MS[-1])
    block_k = BLOCK_K[x.dtype]
    num_parts = num_parts or num_parts_of(num_outputs, num_inputs)
    part_inputs = triton.cdiv(triton.cdiv(num_inputs, num_parts), block_k) * block_k
    out = torch.empty(num_rows, num_outputs, dtype=x.dtype, device=x.device)
    parts = out
    if num_parts > 1:
        parts = torch.empty(num_parts, num_rows, num_outputs, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(num_rows, block_m), triton.cdiv(num_outputs, BLOCK_N), num_parts)
    int8_linear_kernel[grid](
        parts,
        x,
        weight,
        scales,
        bias,
        num_rows,
        num_outputs,
        num_inputs,
        part_inputs,
        x.stride(0),
        weight.stride(0),
        block_m=block_m,
        block_n=BLOCK_N,
        block_k=block_k,
        is_part=num_parts > 1,
        num_warps=num_warps,
        num_stages=num_stages,
        **at_most(255),
    )
    if num_parts > 1:
        grid_of_sum = (triton.cdiv(num_outputs, 256), num_rows)
        add_parts_kernel[grid_of_sum](
            out, parts, scales, bias, num_outputs, num_parts=num_parts, block=256, num_warps=2
        )
    return out
