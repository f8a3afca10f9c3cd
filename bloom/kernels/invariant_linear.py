"""x W^T + b in Triton, the same for a row whatever its neighbours; the twin in naive/linear.py is the definition.

M = rows, K = inputs, N = outputs. Libraries choose tiles, and with them the order of the sums, by M. Here one tile
serves all: every output is the sum over K in steps of block_k, in order, by the same instructions. Programs stay and
take one tile after another, those of one group of rows first, so that the weights they share are in the cache.

Source: He et al. 2025, Defeating Nondeterminism in LLM Inference, on why batches change results.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP_M = 8  # tiles of rows that take the same weights one after another
# (block_m, block_n, block_k, warps, stages): by dtype alone, never by M. fp32 is multiplied without tensor cores.
CONFIGS = {
    torch.float32: (32, 32, 32, 4, 2),
    torch.bfloat16: (64, 128, 64, 4, 3),
    torch.float16: (64, 128, 64, 4, 3),
}


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def linear_kernel(  # type: ignore[no-untyped-def]
    out_ptr,  # (M, N), contiguous
    x_ptr,  # (M, K)
    weight_ptr,  # (N, K)
    bias_ptr,  # (N,) or None
    num_rows,
    num_outputs,
    num_inputs,
    stride_x,
    stride_weight,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    group_m: tl.constexpr,
):
    tiles_m, tiles_n = tl.cdiv(num_rows, block_m), tl.cdiv(num_outputs, block_n)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        first_m = tile // (group_m * tiles_n) * group_m
        group = tl.minimum(group_m, tiles_m - first_m)
        within = tile % (group_m * tiles_n)
        rows = (first_m + within % group) * block_m + tl.arange(0, block_m)
        outputs = within // group * block_n + tl.arange(0, block_n)
        in_rows, in_outputs = rows < num_rows, outputs < num_outputs
        inputs = tl.arange(0, block_k)
        # int64: BLOOM-176B's head has more than 2^31 weights.
        x_row = x_ptr + rows.to(tl.int64)[:, None] * stride_x
        weight_column = weight_ptr + outputs.to(tl.int64)[None, :] * stride_weight
        acc = tl.zeros((block_m, block_n), dtype=tl.float32)
        for start in tl.range(0, num_inputs, block_k):
            k = start + inputs
            x = tl.load(x_row + k[None, :], mask=in_rows[:, None] & (k < num_inputs)[None, :], other=0.0)
            w = tl.load(weight_column + k[:, None], mask=(k < num_inputs)[:, None] & in_outputs[None, :], other=0.0)
            acc = tl.dot(x, w, acc, input_precision="ieee")
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + outputs, mask=in_outputs, other=0.0).to(tl.float32)[None, :]
        target = out_ptr + rows.to(tl.int64)[:, None] * num_outputs + outputs[None, :]
        tl.store(target, acc.to(out_ptr.dtype.element_ty), mask=in_rows[:, None] & in_outputs[None, :])


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, config: tuple[int, int, int, int, int] | None = None
) -> Tensor:
    """See naive.linear. config: block_m, block_n, block_k, warps, stages; results agree only under the same one."""
    (num_rows, num_inputs), num_outputs = x.shape, len(weight)
    assert x.stride(1) == weight.stride(1) == 1
    block_m, block_n, block_k, num_warps, num_stages = config or CONFIGS[x.dtype]
    out = torch.empty(num_rows, num_outputs, dtype=x.dtype, device=x.device)
    num_tiles = triton.cdiv(num_rows, block_m) * triton.cdiv(num_outputs, block_n)
    linear_kernel[(min(num_tiles, num_multiprocessors(x.device)),)](
        out,
        x,
        weight,
        bias,
        num_rows,
        num_outputs,
        num_inputs,
        x.stride(0),
        weight.stride(0),
        block_m=block_m,
        block_n=block_n,
        block_k=block_k,
        group_m=GROUP_M,
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out


def num_multiprocessors(device: torch.device) -> int:
    """Of the GPU; for other devices, where kernels are interpreted or only compiled, any number does."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
