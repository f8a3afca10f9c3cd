"""Logits -> ids, for all sequences of a step.

M = rows, V = drawable vocabulary (ids that the tokenizer has)

For each row: `penalties`, then greedy, or `filters` and one draw. A token is drawn by inverting the cumulative
distribution in vocabulary order at one uniform number, a hash of (seed, position): the same in any batch, after a
preemption and after a restart.

The matrix is never copied: a row of BLOOM's 250,880 logits is a megabyte, and every pass over it counts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.inference.filters import draw, largest, log_normalizer
from services.inference.penalties import has_penalties, penalized
from services.inference.sampling import MAX_SEED, SamplingParams, choice_seed, mix64
from services.inference.sequence import Generation

Rows = NDArray[np.float32]


class Scored(NamedTuple):
    """Of one id in its place: its log-probability, and the likeliest ids with theirs, best first."""

    logprob: float
    top_logprobs: list[tuple[int, float]]


class Drawn(NamedTuple):
    """An id and, when asked for, its log-probability and the likeliest ids with theirs, best first."""

    id: int
    logprob: float | None
    top_logprobs: list[tuple[int, float]]


def sample(logits: Any, seqs: Sequence[Generation], num_token_ids: int) -> list[Drawn]:
    """Draw the next id of each sequence from its row of `logits` (M, rows of the head), fp32, an array or a tensor.

    Log-probabilities are the model's own: log-softmax of the raw logits over all rows of the head, before anything of
    the request's; alternatives are ids that the tokenizer has. They are there when `logprobs` is asked for, and for
    `best_of`, which ranks by them.
    """
    if _is_on_gpu(logits) and all(seq.sampling.typical_p == 1 for seq in seqs):
        return _sample_on_device(logits, seqs, num_token_ids)
    return [_sample_row(row, seq, num_token_ids) for row, seq in zip(to_host(logits), seqs, strict=True)]


def score(logits: Any, ids: Sequence[int], num_alternatives: Sequence[int], num_token_ids: int) -> list[Scored]:
    """The log-probability of an id in each row of `logits` (M, rows of the head), and the likeliest ids there.

    Log-softmax is over all rows of the head; alternatives are ids that the tokenizer has.
    """
    if _is_on_gpu(logits):
        from services.inference.device_sampler import logprobs_on_device

        return logprobs_on_device(logits, ids, num_alternatives, num_token_ids)
    asked = zip(to_host(logits), ids, num_alternatives, strict=True)
    return [_score_row(row, token_id, num, num_token_ids) for row, token_id, num in asked]


def to_host(rows: Any) -> Rows:
    """fp32, without a copy where they are that and on the host already."""
    array: Rows = rows if isinstance(rows, np.ndarray) else rows.float().cpu().numpy()
    return array


def _is_on_gpu(rows: Any) -> bool:
    return not isinstance(rows, np.ndarray) and rows.is_cuda


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) from 53 bits: SplitMix64 (Steele et al. 2014) over seed, then position."""
    return (mix64(mix64(seed) + position & MAX_SEED) >> 11) * 2.0**-53


def _sample_row(row: Rows, seq: Generation, num_token_ids: int) -> Drawn:
    params = seq.sampling
    drawable = row[:num_token_ids]
    if has_penalties(params):
        with penalized(drawable, seq):
            token_id = _draw(drawable, seq)
    else:
        token_id = _draw(drawable, seq)
    if not _wants_logprobs(params):
        return Drawn(token_id, None, [])
    return Drawn(token_id, *_score_row(row, token_id, params.logprobs or 0, num_token_ids))


def _wants_logprobs(params: SamplingParams) -> bool:
    return params.logprobs is not None or params.best_of > params.n


def _draw(drawable: Rows, seq: Generation) -> int:
    params = seq.sampling
    if params.temperature == 0:
        return int(drawable.argmax())
    return draw(drawable, params, uniform(choice_seed(params.seed, seq.choice), len(seq.token_ids)))


def _score_row(row: Rows, token_id: int, num_alternatives: int, num_token_ids: int) -> Scored:
    normalizer = log_normalizer(row)
    num_alternatives = min(num_alternatives, num_token_ids)
    likely = largest(row[:num_token_ids], num_alternatives).tolist() if num_alternatives else []
    return Scored(float(row[token_id]) - normalizer, [(i, float(row[i]) - normalizer) for i in likely])


def _sample_on_device(logits: Any, seqs: Sequence[Generation], num_token_ids: int) -> list[Drawn]:
    from services.inference.device_sampler import draw_on_device, logprobs_on_device

    drawn = [Drawn(token_id, None, []) for token_id in draw_on_device(logits, seqs, num_token_ids)]
    rows = [row for row, seq in enumerate(seqs) if _wants_logprobs(seq.sampling)]
    if rows:
        nums = [seqs[row].sampling.logprobs or 0 for row in rows]
        reported = logprobs_on_device(logits[rows], [drawn[row].id for row in rows], nums, num_token_ids)
        for row, logprobs in zip(rows, reported, strict=True):
            drawn[row] = Drawn(drawn[row].id, *logprobs)
    return drawn
