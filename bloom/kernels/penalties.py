"""Penalties, biases and bans of single logits in Triton, in place; the twin in naive/sampling.py is the definition.

B = rows, P = ids of a row.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256  # ids per program
NUM_WARPS = 2


@triton.jit(do_not_specialize=["num_ids"])  # type: ignore[untyped-decorator]
def penalize_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,  # (B, any) fp32
    ids_ptr,  # (B, P) int32, contiguous
    counts_ptr,  # (B, P) int32, contiguous
    biases_ptr,  # (B, P) fp32, contiguous
    repetition_ptr,  # (B,) fp32
    presence_ptr,
    frequency_ptr,
    num_ids,
    stride_row,
    block: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    places = tl.program_id(0) * block + tl.arange(0, block)
    in_row = places < num_ids
    ids = tl.load(ids_ptr + row * num_ids + places, mask=in_row, other=-1)
    used = ids >= 0
    counts = tl.load(counts_ptr + row * num_ids + places, mask=used, other=0)
    targets = logits_ptr + row * stride_row + ids
    values = tl.load(targets, mask=used, other=0.0) + tl.load(biases_ptr + row * num_ids + places, mask=used, other=0.0)
    repetition = tl.load(repetition_ptr + row)
    repeated = tl.where(values < 0, values * repetition, values / repetition)
    values = tl.where(counts >= 0, repeated, values)
    once, each = tl.load(presence_ptr + row), tl.load(frequency_ptr + row)
    values -= tl.where(counts > 0, once + counts.to(tl.float32) * each, 0.0)
    tl.store(targets, values, mask=used)


def penalize(
    logits: Tensor,
    ids: Tensor,
    counts: Tensor,
    biases: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
    *,
    block: int = BLOCK,
    num_warps: int = NUM_WARPS,
) -> None:
    """See naive.penalize."""
    num_rows, num_ids = ids.shape
    assert logits.stride(1) == 1
    assert ids.is_contiguous() and counts.is_contiguous() and biases.is_contiguous()  # noqa: PT018
    penalize_kernel[(triton.cdiv(num_ids, block), num_rows)](
        logits,
        ids,
        counts,
        biases,
        repetition,
        presence,
        frequency,
        num_ids,
        logits.stride(0),
        block=block,
        num_warps=num_warps,
    )
