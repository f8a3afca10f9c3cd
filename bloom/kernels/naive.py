"""The plain twins of the kernels: what they compute, in torch. Also the engine's path where there is no CUDA.

B = sequences, N = heads, D = head dim, L = longest context among them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def paged_decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, context_lens: Tensor, slopes: Tensor
) -> Tensor:
    """Attention of one new token per sequence over its cached context, with ALiBi; (B, N, D) in q's dtype.

    q: (B, N, D), not scaled. k_cache, v_cache: (num_blocks, block_size, N, D), the new token's own key and value
    included. block_tables: (B, max_blocks) int32; entries past a sequence's context are not read as blocks.
    context_lens: (B,) int32, at least 1. slopes: (N,) fp32.

    The weight of key j is softmax_j(q·k_j / sqrt(D) + slope * (j - last)), in fp32. Unused slots of the
    cache may hold anything, NaN included.
    Source: Kwon et al. 2023, PagedAttention; Press et al. 2022, ALiBi.
    """
    block_size = k_cache.shape[1]
    longest = int(context_lens.max())
    position = torch.arange(longest, device=q.device)  # (L,)
    tables = block_tables[:, position // block_size].long()  # (B, L)
    slots = tables * block_size + position % block_size
    valid = position < context_lens[:, None]  # (B, L)
    slots = torch.where(valid, slots, slots[:, :1])  # a masked key reads the first slot: never unused memory
    # index_select: copies whole rows, up to seven times as fast as indexing with a (B, L) tensor
    rows = (cache.flatten(0, 1).index_select(0, slots.flatten()) for cache in (k_cache, v_cache))
    k, v = (x.view(*slots.shape, *x.shape[1:]).transpose(1, 2).float() for x in rows)  # each (B, N, L, D)
    distance = (position - (context_lens[:, None] - 1)).float()  # (B, L), at most 0 where valid
    bias = (slopes[:, None] * distance[:, None]).masked_fill(~valid[:, None], float("-inf"))  # (B, N, L)
    # In fp32 throughout: on the CPU that is faster than bf16 for a single query row, which no bf16 GEMM is made for.
    out = F.scaled_dot_product_attention(q.float()[:, :, None], k, v, attn_mask=bias[:, :, None])
    return out.squeeze(2).to(q.dtype)
