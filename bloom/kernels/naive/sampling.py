"""Logits -> ids: penalties, temperature, top-k, top-p, min-p and a draw that depends on seed and position alone.

B = rows, V = drawable vocabulary, P = ids of a row that are penalized, biased or banned
"""

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
LEAST_TEMPERATURE = 1e-30  # keeps x / temperature from 0 / 0; greedy long before


def penalize(
    logits: Tensor,
    ids: Tensor,
    counts: Tensor,
    biases: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    """Change single logits of each row of `logits` (B, any) fp32, in place.

    ids: (B, P) int32, each at most once in a row; -1 pads. counts: (B, P) int32, how often the output has the id; -1:
    neither output nor prompt has it. biases: (B, P) fp32, -inf bans. repetition, presence, frequency: (B,) fp32.

    The bias is added; then an id of prompt or output has its positive logit divided, its negative one multiplied by
    `repetition` (Keskar et al. 2019, CTRL, section 4.1); then an id of the output loses presence + count * frequency
    (OpenAI's API reference).
    """
    rows, places = (ids >= 0).nonzero(as_tuple=True)
    columns, count = ids[rows, places].long(), counts[rows, places]
    values = logits[rows, columns] + biases[rows, places]
    repeated = torch.where(values < 0, values * repetition[rows], values / repetition[rows])
    values = torch.where(count >= 0, repeated, values)
    values = values - torch.where(count > 0, presence[rows] + count * frequency[rows], 0.0)
    logits[rows, columns] = values


def sample(
    logits: Tensor,
    seeds: Tensor,
    positions: Tensor,
    temperatures: Tensor,
    *,
    top_ks: Tensor | None = None,
    top_ps: Tensor | None = None,
    min_ps: Tensor | None = None,
    num_ids: int | None = None,
) -> Tensor:
    """(B,) int64, the id drawn from each row of `logits` (B, any) fp32, of which the first num_ids may be drawn.

    seeds, positions: (B,) int64 (a seed of 64 bits as its two's complement). temperatures: (B,) fp32, 0 = greedy: the
    lowest of the likeliest ids. top_ks: (B,) int32, 0 = off. top_ps, min_ps: (B,) fp32, 1 and 0 = off. None = off for
    all, which costs nothing.

    Each filter is a threshold, so ties stay whole: top-k; then the fewest likeliest tokens that have top_p of what is
    left (Holtzman et al. 2020, section 3.1); then those at least min_p times as likely as the likeliest. The id is the
    first at which the cumulative weight, in vocabulary order, exceeds `uniform` of the total: the same in any batch.
    """
    drawable = logits if num_ids is None else logits[:, :num_ids]
    greedy = drawable.argmax(dim=-1)
    peak = drawable.amax(dim=-1, keepdim=True)
    temperature = temperatures.clamp(min=LEAST_TEMPERATURE)[:, None]
    scaled = (drawable - peak) / temperature  # (B, V)
    if top_ks is not None:
        scaled.masked_fill_(scaled < _top_k_threshold(scaled, top_ks), -torch.inf)
    if top_ps is not None:
        scaled.masked_fill_(scaled < _top_p_threshold(scaled, top_ps), -torch.inf)
    if min_ps is not None:
        scaled.masked_fill_(drawable < peak + temperature * min_ps[:, None].log(), -torch.inf)
    cumulative = scaled.exp().double().cumsum(dim=-1)  # (B, V)
    draws = zip(seeds.tolist(), positions.tolist(), strict=True)
    uniforms = torch.tensor([uniform(*draw) for draw in draws], dtype=torch.float64, device=logits.device)
    drawn = torch.searchsorted(cumulative, cumulative[:, -1:] * uniforms[:, None], right=True).squeeze(1)
    return torch.where(temperatures > 0, drawn, greedy)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from 53 bits: SplitMix64 (Steele et al. 2014) over seed, then position."""
    return (_mix(_mix(seed & _MASK) + position & _MASK) >> 11) * 2.0**-53


def _mix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
    return state ^ state >> 31


def _top_k_threshold(scaled: Tensor, top_ks: Tensor) -> Tensor:
    """(B, 1): the k-th largest of each row, the least where k is 0."""
    ranked = scaled.sort(dim=-1, descending=True).values
    ks = torch.where(top_ks > 0, top_ks, scaled.shape[1]).clamp(max=scaled.shape[1]).long()
    return ranked.gather(1, ks[:, None] - 1)


def _top_p_threshold(scaled: Tensor, top_ps: Tensor) -> Tensor:
    """(B, 1): the least of the fewest largest with top_p of the weight, -inf where top_p is 1."""
    ranked = scaled.sort(dim=-1, descending=True).values
    mass = ranked.exp().double().cumsum(dim=-1)
    before = (mass < top_ps[:, None] * mass[:, -1:]).sum(dim=-1, keepdim=True)
    threshold = ranked.gather(1, before.clamp(max=scaled.shape[1] - 1))
    return threshold.masked_fill(top_ps[:, None] >= 1, -torch.inf)
