"""One op per file: a Triton kernel and its launcher; the plain twins are in naive.py. Dispatch is by device."""

import torch
from torch import Tensor

from . import naive


def paged_decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, context_lens: Tensor, slopes: Tensor
) -> Tensor:
    """See naive.paged_decode_attention: Triton on CUDA, torch elsewhere."""
    if q.is_cuda:
        from . import paged_attention as triton_kernel  # here, so that a machine without CUDA needs no triton

        with torch.cuda.device(q.device):  # triton launches on the current device
            return triton_kernel.paged_decode_attention(q, k_cache, v_cache, block_tables, context_lens, slopes)
    return naive.paged_decode_attention(q, k_cache, v_cache, block_tables, context_lens, slopes)
