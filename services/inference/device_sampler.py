"""Sampling where the logits are: all rows at once on a GPU. `sampler` defines what comes out, `bloom.kernels` does it.

B = rows, P = ids of a row that a penalty, a bias or a ban concerns
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bloom import kernels
from services.inference.filters import Ids, Row
from services.inference.penalties import banned_ids, has_penalties
from services.inference.sampler import Scored
from services.inference.sampling import choice_seed
from services.inference.sequence import Generation


def draw_on_device(logits: Tensor, seqs: Sequence[Generation], num_token_ids: int) -> list[int]:
    """The next id of each sequence from its row of `logits` (B, rows of the head), fp32, which stay as they are.

    Not for locally typical sampling.
    """
    params = [seq.sampling for seq in seqs]
    if any(map(has_penalties, params)):
        logits = logits.clone()
        kernels.penalize(logits, *_penalties(seqs, logits.device))
    if all(p.temperature == 0 for p in params):
        greedy: list[int] = logits[:, :num_token_ids].argmax(dim=-1).tolist()
        return greedy

    def column(values: Sequence[float], off: float, dtype: torch.dtype) -> Tensor | None:
        used = any(value != off for value in values)
        return torch.tensor(values, dtype=dtype, device=logits.device) if used else None

    drawn: list[int] = kernels.sample(
        logits,
        _signed([choice_seed(seq.sampling.seed, seq.choice) for seq in seqs], logits.device),
        torch.tensor([len(seq.token_ids) for seq in seqs], device=logits.device),
        torch.tensor([p.temperature for p in params], dtype=torch.float32, device=logits.device),
        top_ks=column([min(p.top_k, num_token_ids) for p in params], 0, torch.int32),
        top_ps=column([p.top_p for p in params], 1, torch.float32),
        min_ps=column([p.min_p for p in params], 0, torch.float32),
        num_ids=num_token_ids,
    ).tolist()
    return drawn


def logprobs_on_device(
    logits: Tensor, ids: Sequence[int], num_alternatives: Sequence[int], num_token_ids: int
) -> list[Scored]:
    """Log-softmax over all of each row of `logits` (B, rows of the head), at its id and at its likeliest ids."""
    normalizers = logits.logsumexp(dim=-1, keepdim=True)
    drawn = logits.gather(1, torch.tensor(ids, device=logits.device)[:, None]) - normalizers
    best = logits[:, :num_token_ids].topk(min(max(num_alternatives), num_token_ids), dim=-1)
    rows = zip(best.indices.tolist(), (best.values - normalizers).tolist(), num_alternatives, strict=True)
    tops = [list(zip(others[:num], likely[:num], strict=True)) for others, likely, num in rows]
    return [Scored(*row) for row in zip(drawn.squeeze(1).tolist(), tops, strict=True)]


def _penalties(seqs: Sequence[Generation], device: torch.device) -> list[Tensor]:
    """Arguments of `kernels.penalize` after the logits: a table (B, P) of ids with what becomes of each."""
    tables = [_table(seq) for seq in seqs]
    shape = (len(seqs), max(1, *(ids.size for ids, _, _ in tables)))
    padded_ids, padded_counts = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    padded_biases = np.zeros(shape, np.float32)
    for row, (ids, counts, biases) in enumerate(tables):
        padded_ids[row, : ids.size], padded_counts[row, : ids.size] = ids, counts
        padded_biases[row, : ids.size] = biases
    params = [seq.sampling for seq in seqs]
    return [
        *(torch.from_numpy(part).to(device) for part in (padded_ids, padded_counts, padded_biases)),
        torch.tensor([p.repetition_penalty for p in params], dtype=torch.float32, device=device),
        torch.tensor([p.presence_penalty for p in params], dtype=torch.float32, device=device),
        torch.tensor([p.frequency_penalty for p in params], dtype=torch.float32, device=device),
    ]


def _table(seq: Generation) -> tuple[Ids, Ids, Row]:
    """Ids that are not left alone; how often the output has each, -1 where nothing has it; what is added to each."""
    params, tokens, banned = seq.sampling, np.array(seq.token_ids), banned_ids(seq)
    output = tokens[seq.num_prompt :]
    seen = output if params.repetition_penalty == 1 else tokens
    biased = np.fromiter(params.logit_bias, np.int64)
    ids = np.unique(np.concatenate([seen, biased, banned]))
    counts = np.full(ids.size, -1)
    counts[np.searchsorted(ids, seen)] = 0
    np.add.at(counts, np.searchsorted(ids, output), 1)
    biases = np.zeros(ids.size, np.float32)
    biases[np.searchsorted(ids, biased)] = np.fromiter(params.logit_bias.values(), np.float32)
    biases[np.searchsorted(ids, banned)] = -np.inf
    return ids, counts, biases


def _signed(seeds: Sequence[int], device: torch.device) -> Tensor:
    """64 bits as int64."""
    return torch.tensor([seed - (seed >> 63 << 64) for seed in seeds], device=device)
