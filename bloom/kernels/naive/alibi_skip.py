"""Which blocks of the cache a query may leave out, because ALiBi leaves them too little weight to show.

Write s_j for the score of key j, p for the query's own position, m for the head's slope, Z for the sum of all exp(s_j).
A block of keys, none of which is longer than K (`key_norms`) or nearer to p than d, holds at most

    r = block_size * exp(|q| K / sqrt(D) - m d - s_p)

of exp(s_p): Cauchy-Schwarz for the product, the bias falls with the distance. Walk from the oldest block. One whose r
exceeds the tolerance t is kept; the others add their r to a running sum, and are left out while that sum is at most t.
So the mass left out is at most t exp(s_p) <= t Z, because p's own block is always kept: a share delta <= t of Z.

The output is then off by at most 2 delta max|v|. With D the mass left out, kept keys weigh exp(s_j) / (Z - D) instead
of exp(s_j) / Z; together they gain (Z - D) (1 / (Z - D) - 1 / Z) = D / Z, and those left out lose D / Z. The change of
the output is those two weights times values no longer than max|v|.

fp32 rounding: products are taken too large and distances too small by the relative ROUNDING, more than a dot product
of 128 numbers can be off by in any order, so that rounding never makes a bound too small.

R = query rows, N = heads, D = head dim, M = blocks of a table.
Source: Press et al. 2022, ALiBi; the bound is ours.
"""

import math

import torch
from torch import Tensor

ROUNDING = 2.0**-16
TOLERANCES = {
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-9,
    torch.float16: 2.0**-12,
}  # half a unit in the last place


def default_tolerance(dtype: torch.dtype) -> float:
    """Share of the mass that may be left out unseen by an output of this dtype."""
    return TOLERANCES[dtype]


def kept_blocks(
    q: Tensor,
    own_keys: Tensor,
    key_norms: Tensor,
    positions: Tensor,
    slopes: Tensor,
    *,
    block_size: int,
    tolerance: float,
) -> Tensor:
    """(R, N, M) bool: whether a row has to read a block. Blocks past the row's own are False.

    q, own_keys: (R, N, D), the queries and the keys at their own positions. key_norms: (R, N, M) fp32, of the blocks of
    each row's table. positions: (R,). slopes: (N,) fp32. tolerance: 0 keeps every block.
    """
    scale = q.shape[-1] ** -0.5
    first = torch.arange(key_norms.shape[-1], device=q.device) * block_size  # position of each block's first key
    exists = (first <= positions[:, None])[:, None]  # (R, 1, M)
    if tolerance <= 0:
        return exists.expand(-1, q.shape[1], -1)
    own = (q.float() * own_keys.float()).sum(dim=-1) * scale  # (R, N)
    longest = q.float().norm(dim=-1)[..., None] * key_norms * scale  # (R, N, M): no product is larger
    nearest = (positions[:, None] - (first + block_size - 1))[:, None].float()  # (R, 1, M)
    bias = slopes[:, None] * nearest
    exponent = longest * (1 + ROUNDING) - bias * (1 - ROUNDING) - own[..., None] + math.log(block_size)
    bound = exponent.clamp(max=80.0).exp()  # NaN, from norms never written, is kept
    candidate = exists & (nearest >= 0) & (bound <= tolerance)
    total = torch.where(candidate, bound, 0.0).cumsum(dim=-1)
    kept: Tensor = exists & ~(candidate & (total <= tolerance))
    return kept
