"""Logits -> ids, for all sequences of a step at once.

B = sequences, V = drawable vocabulary (ids that the tokenizer has).

Top-k and top-p are each turned into one threshold per row, so ties are kept whole and nothing depends on how a sort
orders them. A token is drawn by inverting the cumulative distribution in vocabulary order at one uniform number, a
hash of (seed, position): the same in any batch, after a preemption and after a restart.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from services.inference.sampling import MAX_SEED, SamplingParams, mix64
from services.inference.sequence import Generation

_NUCLEUS_CANDIDATES = 1024  # usually hold top_p of the mass; else the whole row is sorted


class Drawn(NamedTuple):
    """An id and, when asked for, its log-probability and the likeliest ids with theirs."""

    id: int
    logprob: float | None
    top_logprobs: list[tuple[int, float]]


def sample(logits: Tensor, seqs: list[Generation], num_token_ids: int) -> list[Drawn]:
    """Draw the next id of each sequence from its row of `logits` (B, rows of the head), fp32.

    Log-probabilities are of the model itself: log-softmax of the raw logits over all rows of the head, before
    penalty, temperature and filters.
    """
    params = [seq.sampling for seq in seqs]
    drawable = logits[:, :num_token_ids]
    penalized = [row for row, p in enumerate(params) if p.repetition_penalty != 1.0]
    if penalized:
        drawable = drawable.clone()  # the raw logits are still needed for log-probabilities
        for row in penalized:
            _penalize(drawable[row], seqs[row])
    ids: list[int] = drawable.argmax(dim=-1).tolist()
    random = [row for row, p in enumerate(params) if p.temperature > 0]
    if random:
        rows = drawable[random] if len(random) < len(seqs) else drawable
        uniforms = [uniform(params[row].seed, len(seqs[row].token_ids)) for row in random]
        weights = _weights(rows, [params[row] for row in random])
        for row, drawn in zip(random, _invert(weights, uniforms), strict=True):
            ids[row] = drawn
    reported = {row: p.logprobs for row, p in enumerate(params) if p.logprobs is not None}
    if not reported:
        return [Drawn(token_id, None, []) for token_id in ids]
    logprobs = dict(zip(reported, _log_probabilities(logits, ids, reported), strict=True))
    return [logprobs.get(row) or Drawn(token_id, None, []) for row, token_id in enumerate(ids)]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from 53 bits: SplitMix64 (Steele et al. 2014) over seed, then position."""
    return (mix64(mix64(seed) + position & MAX_SEED) >> 11) * 2.0**-53


def _penalize(row: Tensor, seq: Generation) -> None:
    """Divide the positive and multiply the negative logits of ids that stand in prompt or output."""
    seen = torch.from_numpy(np.frombuffer(seq.token_ids, dtype=np.int64).copy()).to(row.device)
    values, penalty = row[seen], seq.sampling.repetition_penalty
    row[seen] = torch.where(values < 0, values * penalty, values / penalty)  # doubles get the same value


def _weights(logits: Tensor, params: list[SamplingParams]) -> Tensor:
    """Unnormalised probabilities (B, V) after temperature, top-k and then top-p; zero where a filter cuts."""
    temperatures = logits.new_tensor([p.temperature for p in params])
    scaled = logits / temperatures[:, None]  # (B, V)
    scaled -= scaled.amax(dim=-1, keepdim=True)  # a tiny temperature makes -inf, never NaN
    for row, p in enumerate(params):
        if 0 < p.top_k < scaled.shape[1]:
            threshold = scaled[row].topk(p.top_k, sorted=False).values.amin()
            scaled[row].masked_fill_(scaled[row] < threshold, -torch.inf)
        if p.top_p < 1:
            threshold = _nucleus_threshold(scaled[row], p.top_p)
            scaled[row].masked_fill_(scaled[row] < threshold, -torch.inf)
    return scaled.exp_()


def _nucleus_threshold(row: Tensor, top_p: float) -> Tensor:
    """Least logit of the smallest set of likeliest tokens with at least `top_p` of the mass (Holtzman et al. 2020)."""
    total = row.exp().sum(dtype=torch.float64)
    for num in (min(_NUCLEUS_CANDIDATES, row.numel()), row.numel()):
        values = row.topk(num).values
        mass = values.exp().cumsum(dim=0, dtype=torch.float64)
        num_kept = int((mass < top_p * total).sum()) + 1  # those before which less than top_p lies
        if num_kept <= num:
            return values[num_kept - 1]
    return values[-1]


def _invert(weights: Tensor, uniforms: list[float]) -> list[int]:
    """The ids at which each row's cumulative weight first exceeds its uniform number's share of the total.

    Two levels, sums of 512 and then one such group, in float64: a flat cumulative sum is slow and inexact.
    """
    num_rows, num_ids = weights.shape
    groups = torch.nn.functional.pad(weights, (0, -num_ids % 512)).view(num_rows, -1, 512)
    outer = groups.sum(dim=-1).double().cumsum(dim=-1)  # (B, V / 512)
    target = outer[:, -1:] * torch.tensor(uniforms, dtype=torch.float64, device=weights.device)[:, None]
    group = torch.searchsorted(outer, target, right=True).minimum(_last_weighted(outer))  # (B, 1)
    before = torch.where(group > 0, outer.gather(1, (group - 1).clamp_(min=0)), 0.0)
    chosen = groups.gather(1, group[..., None].expand(-1, 1, 512)).squeeze(1).double()  # (B, 512)
    inner = chosen.cumsum(dim=-1)
    within = torch.searchsorted(inner, target - before, right=True).minimum(_last_weighted(inner))
    ids: list[int] = (group * 512 + within).squeeze(1).tolist()
    return ids


def _last_weighted(cumulative: Tensor) -> Tensor:
    """Index of the last entry with any weight: rounding between the two levels must not lead past it."""
    return (cumulative < cumulative[:, -1:]).sum(dim=-1, keepdim=True)


def _log_probabilities(logits: Tensor, ids: list[int], reported: dict[int, int]) -> list[Drawn]:
    """The `Drawn` of each row in `reported` (row -> number of alternatives)."""
    rows = logits[list(reported)].log_softmax(dim=-1)
    chosen = [ids[row] for row in reported]
    drawn = rows.gather(1, torch.tensor(chosen, device=rows.device)[:, None]).squeeze(1).tolist()
    most = max(reported.values())
    values, alternatives = (part.tolist() for part in rows.topk(most, dim=-1)) if most else ([[]] * len(chosen),) * 2
    return [
        Drawn(token_id, logprob, list(zip(others[:num], likely[:num], strict=True)))
        for token_id, logprob, others, likely, num in zip(
            chosen, drawn, alternatives, values, reported.values(), strict=True
        )
    ]
