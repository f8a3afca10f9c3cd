"""What a step's hidden states mean for its sequences: tokens drawn, targets scored, states pooled.

R = rows whose hidden states are needed, M = of these those with logits, H = hidden size, V = rows of the head
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.inference.best_of import BestOf
from services.inference.executor import Executor
from services.inference.messages import Embedded, Event, PromptLogprobs, Scored, Token
from services.inference.sampler import sample, score, to_host
from services.inference.scheduler import Chunk, Scheduler
from services.inference.sequence import Embedding, Generation, Scoring, Sequence

_LEAST_NORM = 1e-12  # as torch.nn.functional.normalize has it


class _Target(NamedTuple):
    """An id whose log-probability is asked for, and the row of the hidden states that predicts it."""

    seq: Generation | Scoring
    row: int
    token_id: int
    num_alternatives: int


class Results:
    """Turns hidden states into events, and tells the scheduler what has ended."""

    def __init__(self, executor: Executor, scheduler: Scheduler, *, num_token_ids: int, logits_rows: int) -> None:
        self._executor = executor
        self._scheduler = scheduler
        self._num_token_ids = num_token_ids
        self._logits_rows = logits_rows
        self._best_of: dict[int, BestOf] = {}  # by request

    def forget(self, request_id: int) -> None:
        """Its request is dropped."""
        self._best_of.pop(request_id, None)

    def collect(self, hidden: Any, chunks: list[Chunk], num_needed: NDArray[np.int32]) -> list[Event]:
        """Events of the step that gave `hidden` (R, H), `num_needed` rows of each chunk; these count as computed."""
        drawing: list[tuple[Generation, int]] = []
        targets: list[_Target] = []
        pooling: list[tuple[Embedding, Any]] = []
        end = 0
        for (seq, num_tokens), num_rows in zip(chunks, num_needed.tolist(), strict=True):
            end += num_rows
            if seq.is_scored:
                targets += _targets(seq, num_tokens, end)
            if isinstance(seq, Generation) and seq.num_pending == 0:
                drawing.append((seq, end - 1))
            elif isinstance(seq, Embedding):
                pooling.append((seq, hidden[end - num_rows : end]))
        events = self._score(hidden, targets) if targets else []  # of a prompt, before its first token
        if drawing:
            events += self._draw(hidden, drawing)
        for embedding, states in pooling:
            events += self._pool(embedding, states)
        return events

    def _draw(self, hidden: Any, drawing: list[tuple[Generation, int]]) -> list[Event]:
        logits = self._executor.logits(hidden[[row for _, row in drawing]])  # (M, V)
        if not any(seq.num_forks for seq, _ in drawing):
            return self._sample(logits, [seq for seq, _ in drawing])
        # The choices of a request draw from the same row. All are forked before the first can end.
        choices = [(seq, row) for row, (parent, _) in enumerate(drawing) for seq in self._choices(parent)]
        events: list[Event] = []
        most = max(len(drawing), self._logits_rows)  # rows copied at once: V is large
        for start in range(0, len(choices), most):
            part = choices[start : start + most]
            events += self._sample(logits[[row for _, row in part]], [seq for seq, _ in part])
        return events

    def _sample(self, logits: Any, seqs: list[Generation]) -> list[Event]:
        events: list[Event] = []
        for seq, drawn in zip(seqs, sample(logits, seqs, self._num_token_ids), strict=True):
            finish = seq.append(drawn.id)
            num_cached = 0
            if finish is not None:
                num_cached = seq.num_cached or 0
                self._scheduler.finish(seq)
            token = Token(seq.request_id, drawn.id, drawn.logprob, drawn.top_logprobs, finish, num_cached, seq.choice)
            if seq.sampling.best_of > seq.sampling.n:
                events += self._rank(token)
            else:
                events.append(token)
        return events

    def _choices(self, seq: Generation) -> list[Generation]:
        if not seq.num_forks:
            return [seq]
        if seq.sampling.best_of > seq.sampling.n:
            self._best_of[seq.request_id] = BestOf(seq.sampling)
        return self._scheduler.fork(seq)

    def _rank(self, token: Token) -> list[Token]:
        tokens = self._best_of[token.request_id].add(token)
        if tokens:
            del self._best_of[token.request_id]
        return tokens

    def _score(self, hidden: Any, targets: list[_Target]) -> list[Event]:
        for start in range(0, len(targets), self._logits_rows):  # never more rows at once: V is large
            self._score_rows(hidden, targets[start : start + self._logits_rows])
        events: list[Event] = []
        for seq in dict.fromkeys(target.seq for target in targets):
            if isinstance(seq, Scoring) and seq.num_pending == 0:
                self._scheduler.finish(seq)
                events.append(Scored(seq.request_id, seq.logprobs, [best for (best,) in seq.alternatives]))
            elif isinstance(seq, Generation) and not seq.is_scored:
                events.append(PromptLogprobs(seq.request_id, seq.logprobs, seq.alternatives))
        return events

    def _score_rows(self, hidden: Any, targets: list[_Target]) -> None:
        """Log-softmax over all rows of the head; alternatives are ids that the tokenizer has."""
        logits = self._executor.logits(hidden[[target.row for target in targets]])  # (M, V)
        ids = [target.token_id for target in targets]
        nums = [target.num_alternatives for target in targets]
        for target, scored in zip(targets, score(logits, ids, nums, self._num_token_ids), strict=True):
            target.seq.logprobs.append(scored.logprob)
            target.seq.alternatives.append(scored.top_logprobs)

    def _pool(self, seq: Embedding, states: Any) -> list[Event]:
        """fp64: the sum must not depend on how the prompt was cut."""
        if len(states):
            seq.total = seq.total + to_host(states).sum(axis=0, dtype=np.float64)
            seq.num_pooled = seq.num_computed
        if seq.num_pending:
            return []
        self._scheduler.finish(seq)
        pooled = seq.total / (len(seq.token_ids) if seq.pooling == "mean" else 1)
        if seq.normalize:
            pooled = pooled / max(np.linalg.norm(pooled), _LEAST_NORM)
        return [Embedded(seq.request_id, pooled.astype(np.float32).tolist())]


def _targets(seq: Sequence, num_tokens: int, end: int) -> list[_Target]:
    """What the chunk predicts whose last row is `end` - 1. The row of position p predicts the token at p + 1."""
    assert isinstance(seq, Generation | Scoring)
    first = max(seq.num_computed - num_tokens, seq.first_needed)
    last = min(seq.num_computed, len(seq.token_ids) - 1)
    num_alternatives = 1 if isinstance(seq, Scoring) else seq.sampling.prompt_logprobs or 0
    return [
        _Target(seq, end - seq.num_computed + position, seq.token_ids[position + 1], num_alternatives)
        for position in range(first, last)
    ]
