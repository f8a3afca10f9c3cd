"""The step loop's body: requests in, one step at a time, events out. Knows no socket and no process."""

import math
import time
from collections.abc import Callable
from pathlib import Path

from bloom.checkpoint import open_checkpoint
from services.common.errors import InvalidArgument, ResourceExhausted
from services.inference.block_manager import BlockManager
from services.inference.cache_size import CacheSize
from services.inference.config import EngineConfig
from services.inference.executor import Executor, load_executor
from services.inference.messages import Abort, Embed, Event, Generate, Ready, Refused, Score, Stats, Token
from services.inference.results import Results
from services.inference.scheduler import Scheduler
from services.inference.sequence import Embedding, Generation, Scoring, Sequence
from services.inference.step_batch import StepBatch
from services.inference.throughput import Rate

_RATE_WINDOW_S = 10.0


class Engine:
    """Continuous batching of one model's requests."""

    def __init__(
        self,
        executor: Executor,
        size: CacheSize,
        config: EngineConfig,
        *,
        num_token_ids: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executor = executor
        self._max_sequence_tokens = size.max_sequence_tokens
        self._clock = clock
        self._scheduler = Scheduler(
            BlockManager(size.num_blocks, size.block_size, prefix_caching=config.prefix_caching),
            max_batched_tokens=config.max_batched_tokens,
            max_running=config.max_running,
            max_waiting=config.max_waiting,
            max_step_ms=config.max_step_ms,
            clock=clock,
        )
        self._results = Results(executor, self._scheduler, num_token_ids=num_token_ids, logits_rows=config.logits_rows)
        self._step_s = 0.0
        self._drawn = Rate(_RATE_WINDOW_S, clock())  # tokens

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
            num_preemptions=scheduler.num_preemptions,
            num_prompt_tokens=scheduler.num_prompt_tokens,
            num_prefix_hit_tokens=scheduler.num_prefix_hit_tokens,
            step_s=self._step_s,
            tokens_per_s=self._drawn.per_s(self._clock()),
        )

    def handle(self, message: Generate | Score | Embed | Abort) -> list[Event]:
        """Take or drop a request. The worker has checked its ids and lengths."""
        if isinstance(message, Abort):
            self._drop(message.request_id)
            return []
        try:
            self._scheduler.add(self._sequence_of(message))
        except ResourceExhausted as error:
            return [Refused(message.request_id, str(error), "RESOURCE_EXHAUSTED", error.retry_delay_s)]
        except InvalidArgument as error:
            return [Refused(message.request_id, str(error), "INVALID_ARGUMENT")]
        return []

    def step(self) -> list[Event]:
        """Compute one batch; return what was drawn and what ended."""
        started = self._clock()
        events = self._expire()
        chunks = self._scheduler.schedule()
        if not chunks:  # all that was left had expired
            return events
        batch = StepBatch.from_chunks(chunks, self._scheduler.blocks.take_copies())
        hidden = self._executor.forward(batch)  # (R, H)
        self._scheduler.computed(chunks)
        results = self._results.collect(hidden, chunks, batch.num_needed)
        self._drawn.add(sum(isinstance(event, Token) for event in results), started)
        self._step_s = self._clock() - started
        self._scheduler.measured(self._step_s)
        return events + results

    def close(self) -> None:
        """End what the executor started."""
        self._executor.close()

    def _sequence_of(self, message: Generate | Score | Embed) -> Sequence:
        deadline = math.inf if message.deadline_s is None else self._clock() + message.deadline_s
        request = {"priority": message.priority, "client": message.client, "deadline": deadline}
        match message:
            case Generate(request_id, prompt_ids, sampling):
                return Generation(request_id, prompt_ids, sampling, self._max_sequence_tokens, **request)
            case Score(request_id, context_ids, target_ids):
                return Scoring(request_id, context_ids, target_ids, **request)
            case Embed(request_id, ids, pooling, normalize):
                return Embedding(request_id, ids, pooling, normalize, **request)

    def _expire(self) -> list[Event]:
        error = "the deadline passed before the request was done; allow more time, or ask for less"
        expired = self._scheduler.expire()
        for request_id in expired:
            self._results.forget(request_id)
        return [Refused(request_id, error, "DEADLINE_EXCEEDED") for request_id in expired]

    def _drop(self, request_id: int) -> None:
        self._scheduler.abort(request_id)
        self._results.forget(request_id)


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
    return engine, Ready(loaded.device, loaded.weights, size.max_sequence_tokens, size.num_blocks, size.block_size)
