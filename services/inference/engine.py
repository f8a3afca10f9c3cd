"""The step loop's body: requests in, one step at a time, events out. Knows no socket and no process."""

from pathlib import Path

import torch
from torch import Tensor

from bloom.checkpoint import open_checkpoint
from services.common.errors import ResourceExhausted
from services.inference.block_manager import BlockManager
from services.inference.config import EngineConfig
from services.inference.executor import Executor, load_executor
from services.inference.kv_cache import CacheSize
from services.inference.messages import Abort, Event, Generate, Ready, Refused, Score, Scored, Stats, Token
from services.inference.sampler import sample
from services.inference.scheduler import Chunk, Scheduler
from services.inference.sequence import Generation, Scoring, Sequence
from services.inference.step_batch import StepBatch


class Engine:
    """Continuous batching of one model's requests."""

    def __init__(self, executor: Executor, size: CacheSize, config: EngineConfig, *, num_token_ids: int) -> None:
        self._executor = executor
        self._num_token_ids = num_token_ids
        self._logits_rows = config.logits_rows
        self._max_sequence_tokens = size.max_sequence_tokens
        self._scheduler = Scheduler(
            BlockManager(size.num_blocks, size.block_size, prefix_caching=config.prefix_caching),
            max_batched_tokens=config.max_batched_tokens,
            max_running=config.max_running,
            max_waiting=config.max_waiting,
        )

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def stats(self) -> Stats:
        scheduler = self._scheduler
        return Stats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_blocks=scheduler.blocks.num_blocks,
            num_free_blocks=scheduler.blocks.num_free,
        )

    def handle(self, message: Generate | Score | Abort) -> list[Event]:
        """Take or drop a request. The worker has checked its ids and lengths."""
        if isinstance(message, Abort):
            self._scheduler.abort(message.request_id)
            return []
        seq: Sequence
        if isinstance(message, Generate):
            seq = Generation(message.request_id, message.prompt_ids, message.sampling, self._max_sequence_tokens)
        else:
            seq = Scoring(message.request_id, message.context_ids, message.target_ids)
        try:
            self._scheduler.add(seq)
        except ResourceExhausted as error:
            return [Refused(message.request_id, str(error))]
        return []

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Compute one batch; return what was drawn and what ended."""
        chunks = self._scheduler.schedule()
        hidden = self._executor.forward(StepBatch.from_chunks(chunks))  # (T, H)
        drawing, scoring = _rows(chunks)
        self._scheduler.computed(chunks)
        return self._draw(hidden, drawing) + self._score(hidden, scoring)

    def _draw(self, hidden: Tensor, drawing: list[tuple[Generation, int]]) -> list[Event]:
        if not drawing:
            return []
        seqs = [seq for seq, _ in drawing]
        logits = self._executor.logits(hidden[[row for _, row in drawing]])
        events: list[Event] = []
        for seq, drawn in zip(seqs, sample(logits, seqs, self._num_token_ids), strict=True):
            finish = seq.append(drawn.id)
            num_cached = 0
            if finish:
                num_cached = seq.num_cached or 0
                self._scheduler.finish(seq)
            events.append(Token(seq.request_id, drawn.id, drawn.logprob, drawn.top_logprobs, finish, num_cached))
        return events

    def _score(self, hidden: Tensor, scoring: list[tuple[Scoring, int, int]]) -> list[Event]:
        """`scoring`: per row its sequence, its number in `hidden` and the id whose probability is asked for."""
        for start in range(0, len(scoring), self._logits_rows):
            part = scoring[start : start + self._logits_rows]
            logits = self._executor.logits(hidden[[row for _, row, _ in part]])  # never more rows: V is large
            targets = torch.tensor([target for _, _, target in part], device=logits.device)
            logprobs = logits.log_softmax(dim=-1)
            best = logprobs[:, : self._num_token_ids].max(dim=-1)
            scored = zip(
                part,
                logprobs.gather(1, targets[:, None]).squeeze(1).tolist(),
                best.indices.tolist(),
                best.values.tolist(),
                strict=True,
            )
            for (seq, _, _), logprob, best_id, best_logprob in scored:
                seq.logprobs.append(logprob)
                seq.best.append((best_id, best_logprob))
        events: list[Event] = []
        for seq in dict.fromkeys(seq for seq, _, _ in scoring):
            if seq.num_pending == 0:
                self._scheduler.finish(seq)
                events.append(Scored(seq.request_id, seq.logprobs, seq.best))
        return events


def _rows(chunks: list[Chunk]) -> tuple[list[tuple[Generation, int]], list[tuple[Scoring, int, int]]]:
    """Which packed rows need logits: the last of a generation's inputs, and those before a scored target."""
    drawing: list[tuple[Generation, int]] = []
    scoring: list[tuple[Scoring, int, int]] = []
    start = 0  # of the chunk's rows
    for seq, num_tokens in chunks:
        if isinstance(seq, Generation) and seq.num_pending == num_tokens:
            drawing.append((seq, start + num_tokens - 1))
        elif isinstance(seq, Scoring):
            for position in range(max(seq.num_computed, seq.first_logits), seq.num_computed + num_tokens):
                scoring.append((seq, start + position - seq.num_computed, seq.token_ids[position + 1]))
        start += num_tokens
    return drawing, scoring


def load_engine(model_dir: Path, config: EngineConfig, *, num_token_ids: int) -> tuple[Engine, Ready]:
    """Load a Hugging Face BLOOM folder and make room for its cache.

    Raises ValueError, naming file, tensor or setting, when that cannot be.
    """
    rows = open_checkpoint(model_dir).config.vocab_size
    if not 1 <= num_token_ids <= rows:
        raise ValueError(
            f"the tokenizer has {num_token_ids} ids but the model's vocabulary {rows} rows; "
            "register the version with the tokenizer it was trained with"
        )
    loaded = load_executor(model_dir, config)
    size = loaded.size
    engine = Engine(loaded.executor, size, config, num_token_ids=num_token_ids)
    return engine, Ready(loaded.device, loaded.dtype, size.max_sequence_tokens, size.num_blocks, size.block_size)
