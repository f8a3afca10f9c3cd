"""Which sequences the next step computes, and how many tokens of each."""

from collections import deque
from typing import NamedTuple

from services.common.errors import ResourceExhausted
from services.inference.block_manager import BlockManager, OutOfBlocks
from services.inference.sequence import Sequence


class Chunk(NamedTuple):
    """`num_tokens` inputs of `seq` from its `num_computed` on. A decode is a chunk of one token."""

    seq: Sequence
    num_tokens: int


class Scheduler:
    """First come, first served; one token budget per step shared by decodes and chunked prefills.

    When blocks run out the newest running sequence is preempted: it gives all blocks back and is computed again
    later (most of it from the prefix cache, where that still holds it). `running` is always in order of arrival.
    """

    def __init__(self, blocks: BlockManager, *, max_batched_tokens: int, max_running: int, max_waiting: int) -> None:
        if max_batched_tokens < max_running:
            raise ValueError(f"max_batched_tokens={max_batched_tokens} is below max_running={max_running}; raise it")
        self.blocks = blocks
        self._max_batched_tokens = max_batched_tokens
        self._max_running = max_running
        self._max_waiting = max_waiting
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self._by_id: dict[int, Sequence] = {}

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, seq: Sequence) -> None:
        """Queue `seq`. Raises ResourceExhausted when the queue is full.

        The caller has checked that the whole cache can hold it at its longest.
        """
        if len(self.waiting) >= self._max_waiting:
            raise ResourceExhausted(
                f"{len(self.waiting)} requests wait already and {len(self.running)} run; try again later"
            )
        self.waiting.append(seq)
        self._by_id[seq.request_id] = seq

    def schedule(self) -> list[Chunk]:
        """Pick the next step's chunks, single tokens first; every chunk's blocks are reserved."""
        chunks, preempted = self._continue_running()
        if not preempted:  # what was just pushed out must not come back in the same step
            self._admit(chunks, self._max_batched_tokens - sum(chunk.num_tokens for chunk in chunks))
        chunks.sort(key=lambda chunk: chunk.num_tokens > 1)
        return chunks

    def computed(self, chunks: list[Chunk]) -> None:
        """The step of `chunks` is done: their keys and values lie in the cache."""
        for seq, num_tokens in chunks:
            seq.num_computed += num_tokens
            self.blocks.register(seq)

    def finish(self, seq: Sequence) -> None:
        """Forget `seq` and free its blocks."""
        del self._by_id[seq.request_id]
        if seq in self.running:
            self.running.remove(seq)
            self.blocks.release(seq)
        else:
            self.waiting.remove(seq)

    def abort(self, request_id: int) -> None:
        """`finish` by id; nothing happens when it has ended already."""
        seq = self._by_id.get(request_id)
        if seq is not None:
            self.finish(seq)

    def _continue_running(self) -> tuple[list[Chunk], bool]:
        budget = self._max_batched_tokens
        chunks: list[Chunk] = []
        preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            seq = self.running[index]
            while True:
                try:
                    self.blocks.append(seq)
                    break
                except OutOfBlocks:
                    preempted = True
                    if self._preempt_newest() is seq:
                        return chunks, preempted
            chunks.append(Chunk(seq, min(seq.num_pending, budget)))
            budget -= chunks[-1].num_tokens
            index += 1
        return chunks, preempted

    def _preempt_newest(self) -> Sequence:
        newest = self.running.pop()
        self.blocks.release(newest)
        self.waiting.appendleft(newest)
        return newest

    def _admit(self, chunks: list[Chunk], budget: int) -> None:
        while self.waiting and budget > 0 and len(self.running) < self._max_running:
            seq = self.waiting[0]
            try:
                self.blocks.allocate(seq)
            except OutOfBlocks:
                return
            self.running.append(self.waiting.popleft())
            chunks.append(Chunk(seq, min(seq.num_pending, budget)))
            budget -= chunks[-1].num_tokens
