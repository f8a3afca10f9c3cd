"""Which sequences the next step computes, and how many tokens of each."""

import math
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from services.common.errors import InvalidArgument, ResourceExhausted
from services.inference.block_manager import BlockManager, OutOfBlocks
from services.inference.fairness import Clients, Turn, WaitingQueue, by_age
from services.inference.sequence import Generation, Sequence
from services.inference.step_time import StepBudget, StepLoad, StepTime
from services.inference.throughput import Rate

# A step with prefill in it may take so many times as long as without, so that streams never stall: more of the time
# goes to prompts the more of them wait (relative to `max_running`), as streams that have not begun stall most.
_LEAST_STRETCH, _MOST_STRETCH = 2.25, 4.5
_RATE_WINDOW_S = 10.0
_RETRY_DELAYS_S = (0.1, 60.0)  # the shortest and the longest that a refused caller is told


class Chunk(NamedTuple):
    """`num_tokens` inputs of `seq` from its `num_computed` on. A decode is a chunk of one token."""

    seq: Sequence
    num_tokens: int


class Scheduler:
    """One token budget per step shared by decodes and chunked prefills.

    Every running sequence that decodes gets its token. What is left goes to prompts, in whose turn it is (see
    `fairness`), while the step stays within its time (see `step_time`). When blocks run out the least urgent, then
    the newest running sequence is preempted: it gives all blocks back and is computed again later (most of it from
    the prefix cache, where that still holds it). So the oldest of the most urgent always goes on.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_batched_tokens: int,
        max_running: int,
        max_waiting: int,
        max_step_ms: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_batched_tokens < max_running:
            raise ValueError(f"max_batched_tokens={max_batched_tokens} is below max_running={max_running}; raise it")
        self.blocks = blocks
        self.running: list[Sequence] = []  # the most urgent first, then the oldest
        self._clients = Clients()
        self.waiting = WaitingQueue(self._clients)
        self.num_preemptions = self.num_prompt_tokens = self.num_prefix_hit_tokens = 0
        self._max_batched_tokens = max_batched_tokens
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._max_step_ms = max_step_ms
        self._clock = clock
        self._by_id: dict[int, list[Sequence]] = {}
        self._num_arrivals = 0
        self._num_refused = 0  # for whom no place has come free since
        self._ended = Rate(_RATE_WINDOW_S, clock())  # requests
        self._lent_turns: dict[Sequence, Turn] = {}  # of who is waited for in this step
        self._step_time = StepTime()
        self._load = StepLoad()

    @property
    def has_work(self) -> bool:
        return bool(self._by_id)

    def add(self, seq: Sequence) -> None:
        """Queue `seq`. Raises InvalidArgument when the cache can never hold it, ResourceExhausted when the queue is
        full, with the time in which there may be room."""
        if self.blocks.num_blocks_for(seq.max_inputs) > self.blocks.num_blocks:
            most = self.blocks.num_blocks * self.blocks.block_size
            raise InvalidArgument(f"{seq.max_inputs} tokens can never fit the cache; send at most {most}")
        if len(self.waiting) + len(self.running) >= self._max_waiting + self._max_running:
            self._num_refused += 1
            delay_s = self._retry_delay_s()
            raise ResourceExhausted(
                f"{len(self.waiting)} requests wait already and {len(self.running)} run; "
                f"try again in {delay_s:.1f} s, or raise ANTHESIS_INFERENCE_MAX_WAITING",
                retry_delay_s=delay_s,
            )
        seq.arrival = self._num_arrivals
        self._num_arrivals += 1
        self._by_id[seq.request_id] = [seq]
        self._clients.enter(seq.client)
        self.waiting.add(seq)

    def expire(self) -> list[int]:
        """Drop the requests whose deadline has passed, waiting or running; return their ids."""
        now = self._clock()
        expired = [request_id for request_id, seqs in self._by_id.items() if seqs[0].deadline <= now]
        for request_id in expired:
            self.abort(request_id)
        return expired

    def schedule(self) -> list[Chunk]:
        """Pick the next step's chunks, single tokens first; every chunk's blocks are reserved."""
        self._lent_turns.clear()
        self._displace()
        chunks = self._decode()
        self._load = StepLoad(len(chunks), sum(seq.num_computed + 1 for seq, _ in chunks))
        self._prefill(chunks)
        for seq, num_tokens in chunks:
            self._clients.charge(seq.client, num_tokens)
        chunks.sort(key=lambda chunk: chunk.num_tokens > 1)
        return chunks

    def computed(self, chunks: list[Chunk]) -> None:
        """The step of `chunks` is done: their keys and values lie in the cache."""
        for seq, num_tokens in chunks:
            seq.num_computed += num_tokens
            self.blocks.register(seq)

    def measured(self, step_s: float) -> None:
        """How long the step took that was scheduled last."""
        self._step_time.observe(self._load, step_s * 1000)

    def fork(self, seq: Generation) -> list[Generation]:
        """All choices of `seq`, itself first, once its prompt is computed. To be called for all of a step's
        sequences before any of them is finished.

        A choice for which there is no place or no block waits, as if it were preempted.
        """
        children = seq.forks()
        for child in children:
            self._by_id[child.request_id].append(child)
            self._clients.enter(child.client)
            try:
                if len(self.running) == self._max_running:
                    raise OutOfBlocks
                self.blocks.fork(seq, child)
            except OutOfBlocks:
                self.waiting.add(child)
            else:
                insort(self.running, child, key=by_age)
        return [seq, *children]

    def finish(self, seq: Sequence) -> None:
        """Forget `seq` and free its blocks."""
        choices = self._by_id[seq.request_id]
        choices.remove(seq)
        if not choices:
            del self._by_id[seq.request_id]
            self._ended.add(1, self._clock())
        self._clients.leave(seq.client)
        if seq in self.running:
            self.running.remove(seq)
            self.blocks.release(seq)
        else:
            self.waiting.remove(seq)

    def abort(self, request_id: int) -> None:
        """`finish` of all its choices; nothing happens when it has ended already."""
        for seq in list(self._by_id.get(request_id, ())):
            self.finish(seq)

    def _decode(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        index = 0
        while index < len(self.running):
            seq = self.running[index]
            index += 1
            if seq.num_pending > 1:
                continue  # its blocks have been there since it was admitted
            while True:
                try:
                    self.blocks.append(seq)
                    break
                except OutOfBlocks:
                    if self._preempt(self.running[-1]) is seq:
                        return chunks
            chunks.append(Chunk(seq, 1))
        return chunks

    def _prefill(self, chunks: list[Chunk]) -> None:
        admitting = True
        pending = [seq for seq in self.running if seq.num_pending > 1]
        budget = self._budget(len(pending) + len(self.waiting))
        while not budget.is_spent:
            heads = self.waiting.heads(self._held_back) if admitting and self.waiting else []
            seq = min(pending + heads, key=self._turn, default=None)
            if seq is None:
                return
            if seq in pending:
                pending.remove(seq)
            elif self._fits(seq):
                self._admit(seq)
            else:
                admitting = False  # others would take the blocks that it waits for
                continue
            num_tokens = budget.take(seq.num_computed, seq.num_pending, rows_per_token=2 if seq.is_scored else 1)
            if num_tokens:
                chunks.append(Chunk(seq, num_tokens))
                self._load.add_prefill(seq, num_tokens)

    def _budget(self, num_backlogged: int) -> StepBudget:
        ms = math.inf
        if self._load.num_decodes and (without_prefill_ms := self._step_time.ms(self._load)):
            backlog = min(num_backlogged / self._max_running, 1.0)
            stretch = _LEAST_STRETCH + (_MOST_STRETCH - _LEAST_STRETCH) * backlog
            ms = (self._max_step_ms or stretch * without_prefill_ms) - without_prefill_ms
        num_tokens = self._max_batched_tokens - self._load.num_decodes
        return StepBudget(num_tokens, ms, self.blocks.block_size, self._step_time)

    def _held_back(self, seq: Sequence) -> bool:
        """Whether it is better to wait for what another, at least as urgent, is computing of the same prefix."""
        other = self.blocks.computing_for(seq)
        if other is None or other.priority > seq.priority:
            return False
        self._lent_turns[other] = min(self._turn(other), self._turn(seq))
        return True

    def _turn(self, seq: Sequence) -> Turn:
        """Its own, or that of the first who waits for what it computes."""
        turn = self._clients.turn(seq)
        return min(turn, self._lent_turns.get(seq, turn))

    def _fits(self, seq: Sequence) -> bool:
        """Whether there is place, and blocks enough that every running sequence could take one more afterwards: who
        is admitted should not be preempted at once, and who was just preempted not come back at once."""
        spare = len(self.running) + 1 + seq.num_forks if self.running else 0
        return len(self.running) < self._max_running and self.blocks.num_needed(seq) + spare <= self.blocks.num_free

    def _admit(self, seq: Sequence) -> None:
        self.waiting.remove(seq)
        is_new = seq.num_cached is None
        self.blocks.allocate(seq)
        insort(self.running, seq, key=by_age)
        if is_new:
            self._num_refused = max(self._num_refused - 1, 0)
            self.num_prompt_tokens += seq.num_inputs
            self.num_prefix_hit_tokens += seq.num_computed

    def _displace(self) -> None:
        """Admit in place of others who is more urgent, or whose client runs nothing where another runs several."""
        for seq in self.waiting.heads(self._held_back) if self.waiting else ():
            if self._displaced_by(seq) is None or self._held_back(seq):
                continue
            while not self._fits(seq) and (victim := self._displaced_by(seq)) is not None:
                self._preempt(victim)
            if self._fits(seq):
                self._admit(seq)

    def _displaced_by(self, seq: Sequence) -> Sequence | None:
        """Never the only running sequence of a client that is as urgent, so no two can push each other out in turn."""
        if not self.running:
            return None
        last = self.running[-1]
        if last.priority > seq.priority:
            return last
        equals = [other for other in self.running if other.priority == seq.priority]
        num_running = Counter(other.client for other in equals)
        if not equals or seq.client in num_running:
            return None
        ((client, most),) = num_running.most_common(1)
        return next(other for other in reversed(equals) if other.client == client) if most > 1 else None

    def _preempt(self, seq: Sequence) -> Sequence:
        self.running.remove(seq)
        self.blocks.release(seq)
        self.waiting.add(seq)
        self.num_preemptions += 1
        return seq

    def _retry_delay_s(self) -> float:
        """When a place will have come free for each who was refused, this one last, if requests end as they do now."""
        per_s = self._ended.per_s(self._clock())
        shortest, longest = _RETRY_DELAYS_S
        return min(max(self._num_refused / per_s, shortest), longest) if per_s else 1.0
