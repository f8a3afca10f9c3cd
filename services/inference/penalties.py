"""What changes single logits before a token is drawn, in this order:

1. logit bias: added;
2. repetition penalty, over prompt and output: positive logits divided by it, negative ones multiplied (Keskar et al.
   2019, CTRL, section 4.1);
3. presence and frequency penalty, over the output: subtracted once, and as often as the id stands there (OpenAI's
   API reference);
4. bad words: an id that would complete one is banned;
5. stop ids, before `min_tokens`: banned.

It is the order of transformers, which lacks 3, and of vLLM. Ids are gathered from the tokens each time: tens of
microseconds for thousands of them, and counts kept from step to step would still have to be gathered from the row.
"""

from array import array
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from services.inference.filters import Ids, Row
from services.inference.sampling import SamplingParams
from services.inference.sequence import Generation


def has_penalties(params: SamplingParams) -> bool:
    """Whether any of the above is asked for."""
    return bool(
        params.repetition_penalty != 1
        or params.presence_penalty
        or params.frequency_penalty
        or params.logit_bias
        or params.bad_words
        or params.min_tokens
    )


@contextmanager
def penalized(logits: Row, seq: Generation) -> Iterator[None]:
    """Change `logits` (V,) in place for the next token of `seq`; on leaving they are as before.

    Thousands of values of a row of 250,680 at most: putting them back costs less than a copy of the row.
    """
    params = seq.sampling
    tokens = np.array(seq.token_ids)  # a copy: what NumPy only looks into could not grow
    output = tokens[seq.num_prompt :]
    biased = np.fromiter(params.logit_bias, np.int64)
    banned = banned_ids(seq)
    touched = np.concatenate([biased, output if params.repetition_penalty == 1 else tokens, banned])
    raw = logits[touched]
    logits[biased] += np.fromiter(params.logit_bias.values(), np.float32)
    if params.repetition_penalty != 1:
        _penalize_repetition(logits, tokens, params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        ids, counts = np.unique(output, return_counts=True)
        logits[ids] -= (params.presence_penalty + params.frequency_penalty * counts).astype(np.float32)
    logits[banned] = -np.inf
    try:
        yield
    finally:
        logits[touched] = raw


def _penalize_repetition(logits: Row, ids: Ids, penalty: float) -> None:
    values = logits[ids]
    logits[ids] = np.where(values < 0, values * np.float32(penalty), values / np.float32(penalty))  # doubles alike


def banned_ids(seq: Generation) -> Ids:
    """Last ids of the bad words whose other ids the sequence ends with; stop ids while they are too early."""
    params, tokens = seq.sampling, seq.token_ids
    banned = [word[-1] for word in params.bad_words if len(word) == 1 or _ends_with(tokens, word[:-1])]
    if len(tokens) - seq.num_prompt < params.min_tokens:
        banned.extend(params.stop_ids)
    return np.array(banned, dtype=np.int64)


def _ends_with(tokens: "array[int]", ids: tuple[int, ...]) -> bool:
    return tokens[-1] == ids[-1] and tuple(tokens[-len(ids) :]) == ids
