"""The life of requests under random operations: arrivals of all kinds, steps, forks, aborts, deadlines, prefix hits,
preemption on a cache that is always short of blocks.

The cache is simulated: each slot holds the tokens whose key and value it would hold. Before a step is computed, every
sequence in it must find its own tokens, and those before them, in its blocks. So a block shared wrongly, copied too
late or reused too early is noticed whatever the books say; and the books must be exact after every operation.
"""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.inference import block_manager
from services.inference.block_manager import BlockManager
from services.inference.sampling import SamplingParams
from services.inference.scheduler import Chunk, Scheduler
from services.inference.sequence import Embedding, Generation, Scoring, Sequence

NUM_BLOCKS, BLOCK_SIZE, BUDGET, MAX_RUNNING = 12, 3, 9, 5
MAX_TOKENS = NUM_BLOCKS * BLOCK_SIZE


class Life:
    """A scheduler, the requests that it was given, and what its cache would hold."""

    def __init__(self) -> None:
        self.now = 0.0
        self.blocks = BlockManager(NUM_BLOCKS, BLOCK_SIZE)
        self.s = Scheduler(
            self.blocks,
            max_batched_tokens=BUDGET,
            max_running=MAX_RUNNING,
            max_waiting=1 << 30,
            clock=lambda: self.now,
        )
        self.slots: dict[tuple[int, int], tuple[int, ...]] = {}  # (block, offset) -> tokens up to that one
        self.live: dict[int, list[Sequence]] = {}
        self.num_requests = self.num_forks = self.num_copies = self.num_cached = 0

    def arrive(self, seq: Sequence) -> None:
        self.num_requests += 1
        self.live[seq.request_id] = [seq]
        self.s.add(seq)

    def generate(self, prompt: list[int], max_tokens: int, n: int, scored: bool, **request: float | str) -> None:
        prompt_logprobs = 0 if scored else None
        stop_ids = frozenset([9])
        sampling = SamplingParams(
            seed=0, max_tokens=max_tokens, n=n, best_of=n, prompt_logprobs=prompt_logprobs, stop_ids=stop_ids
        )
        self.arrive(Generation(self.num_requests, prompt, sampling, MAX_TOKENS, **request))

    def score(self, context: list[int], targets: list[int], **request: float | str) -> None:
        self.arrive(Scoring(self.num_requests, context, targets, **request))

    def embed(self, ids: list[int], pooling: str, **request: float | str) -> None:
        self.arrive(Embedding(self.num_requests, ids, pooling, True, **request))

    def abort(self, request_id: int) -> None:
        self.s.abort(request_id)
        del self.live[request_id]

    def step(self, draw: Callable[[], int]) -> None:
        for request_id in self.s.expire():
            assert self.live.pop(request_id)[0].deadline <= self.now
        assert all(seqs[0].deadline > self.now for seqs in self.live.values()), "past its deadline and still there"
        chunks = self.s.schedule()
        assert bool(chunks) == bool(self.live), "there is work but none is done"
        if chunks:
            self.compute(chunks)
            self.s.computed(chunks)
            self.s.measured(0.001 * (5 + sum(num_tokens for _, num_tokens in chunks)))
            self.advance([seq for seq, _ in chunks], draw)

    def compute(self, chunks: list[Chunk]) -> None:
        assert sum(num_tokens for _, num_tokens in chunks) <= BUDGET
        assert len(chunks) == len({id(seq) for seq, _ in chunks}) <= MAX_RUNNING
        order = [num_tokens > 1 for _, num_tokens in chunks]
        assert order == sorted(order), "single tokens come first"
        most_urgent = min(self.s.running, key=lambda seq: (seq.priority, seq.arrival, seq.choice))
        if most_urgent.num_pending == 1:
            assert most_urgent in [seq for seq, _ in chunks], "the oldest of the most urgent waits"
        self.copy(self.blocks.take_copies())
        for seq, num_tokens in chunks:
            assert 1 <= num_tokens <= seq.num_pending
            if seq.num_computed == seq.num_cached:
                self.num_cached += seq.num_cached
            for position in range(seq.num_computed, seq.num_computed + num_tokens):
                self.slots[self.slot(seq, position)] = tuple(seq.token_ids[: position + 1])
        for seq, num_tokens in chunks:
            for position in range(seq.num_computed + num_tokens):
                found = self.slots.get(self.slot(seq, position))
                assert found == tuple(seq.token_ids[: position + 1]), "a sequence finds another's keys"

    def copy(self, copies: list[tuple[int, int]]) -> None:
        targets = [target for _, target in copies]
        assert len(set(targets)) == len(targets)
        assert not set(targets) & {source for source, _ in copies}, "the order of copies matters"
        self.num_copies += len(copies)
        for source, target in copies:
            for offset in range(BLOCK_SIZE):
                if (source, offset) in self.slots:
                    self.slots[target, offset] = self.slots[source, offset]

    def slot(self, seq: Sequence, position: int) -> tuple[int, int]:
        return seq.block_table[position // BLOCK_SIZE], position % BLOCK_SIZE

    def advance(self, seqs: list[Sequence], draw: Callable[[], int]) -> None:
        """What the engine does with the results of a step."""
        for seq in seqs:
            if isinstance(seq, Embedding):
                seq.num_pooled = max(seq.num_computed, seq.num_pooled)
            elif isinstance(seq, Generation | Scoring) and seq.is_scored:
                count = min(seq.num_computed, len(seq.token_ids) - 1) - seq.first_needed
                seq.logprobs.extend([0.0] * count)
        drawing = [seq for seq in seqs if isinstance(seq, Generation) and seq.num_pending == 0]
        for parent in [seq for seq in drawing if seq.num_forks]:
            assert not parent.is_scored, "a row of the prompt was hidden by the prefix cache"
            choices = self.s.fork(parent)
            assert len(choices) == parent.sampling.best_of
            self.num_forks += len(choices) - 1
            self.live[parent.request_id] = list(choices)
            drawing.extend(choices[1:])
        for seq in drawing:
            if seq.append(draw()):
                self.finish(seq)
        for seq in seqs:
            if not isinstance(seq, Generation) and seq.num_pending == 0:
                assert not isinstance(seq, Scoring) or len(seq.logprobs) == len(seq.token_ids) - seq.num_context
                assert not isinstance(seq, Embedding) or seq.num_pooled == len(seq.token_ids)
                self.finish(seq)

    def finish(self, seq: Sequence) -> None:
        self.s.finish(seq)
        self.live[seq.request_id].remove(seq)
        if not self.live[seq.request_id]:
            del self.live[seq.request_id]

    def check_books(self) -> None:
        s, blocks = self.s, self.blocks
        owned = Counter(block for seq in s.running for block in seq.block_table)
        assert blocks._references == [owned[block] for block in range(NUM_BLOCKS)]
        assert sorted([*owned, *blocks._free]) == list(range(NUM_BLOCKS))
        assert not any(seq.block_table for seq in s.waiting)
        for seq in s.running:
            assert len(seq.block_table) == len(set(seq.block_table)) <= NUM_BLOCKS
            written = seq.block_table[seq.num_computed // BLOCK_SIZE :]
            assert all(owned[block] == 1 for block in written), "a block that will be written to is shared"
        alive = [seq for seqs in self.live.values() for seq in seqs]
        assert Counter(map(id, [*s.running, *s.waiting])) == Counter(map(id, alive))
        assert len(s.running) <= MAX_RUNNING
        assert s.has_work == bool(alive)
        assert all(owner in s.running for owner in blocks._computing.values())

    def drain(self, draw: Callable[[], int]) -> None:
        """Everybody comes to an end, and nothing is left."""
        bound = 50 + 20 * sum(len(seqs) * seqs[0].max_inputs * (seqs[0].num_forks + 1) for seqs in self.live.values())
        for _ in range(bound):
            if not self.live:
                break
            self.step(draw)
            self.check_books()
        assert not self.live, "livelock"
        assert self.blocks.num_free == NUM_BLOCKS
        assert not self.blocks._computing
        assert not self.s._clients._served


ids = st.lists(st.integers(0, 1), min_size=1, max_size=14)  # few distinct tokens: prefixes meet often
request = st.fixed_dictionaries(
    {
        "priority": st.integers(-1, 1),
        "client": st.sampled_from("abc"),
    }
)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.life = Life()

    @rule(prompt=ids, max_tokens=st.integers(1, 9), n=st.integers(1, 4), scored=st.booleans(), about=request)
    def generate(self, prompt: list[int], max_tokens: int, n: int, scored: bool, about: dict[str, object]) -> None:
        self.life.generate(prompt, max_tokens, n, scored, **about)

    @rule(prompt=ids, wait=st.integers(0, 9))
    def generate_with_deadline(self, prompt: list[int], wait: int) -> None:
        self.life.generate(prompt, 9, 2, False, deadline=self.life.now + wait)

    @rule(context=ids, continuation=ids, about=request)
    def score(self, context: list[int], continuation: list[int], about: dict[str, object]) -> None:
        self.life.score(context, continuation, **about)

    @rule(prompt=ids, pooling=st.sampled_from(["mean", "last"]), about=request)
    def embed(self, prompt: list[int], pooling: str, about: dict[str, object]) -> None:
        self.life.embed(prompt, pooling, **about)

    @precondition(lambda self: self.life.live)
    @rule(data=st.data(), count=st.integers(1, 4))
    def step(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            self.life.now += 1
            self.life.step(lambda: data.draw(st.sampled_from([0, 1, 1, 0, 9])))
            self.life.check_books()

    @precondition(lambda self: self.life.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.life.abort(data.draw(st.sampled_from(sorted(self.life.live))))

    @invariant()
    def books_are_exact(self) -> None:
        self.life.check_books()

    def teardown(self) -> None:
        self.life.drain(lambda: 0)


TestLife = Machine.TestCase
TestLife.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def live_long(num_operations: int, seed: int) -> Life:
    """One life of many operations, then its end."""
    rng = random.Random(seed)
    life = Life()

    def some_ids() -> list[int]:
        return [rng.randrange(2) for _ in range(rng.randint(1, 14))]

    def draw() -> int:
        return rng.choice([0, 1, 0, 1, 0, 1, 9])

    for _ in range(num_operations):
        about = {"priority": rng.choice([-1, 0, 0, 0, 1]), "client": rng.choice("aaaabc")}
        if rng.random() < 0.2:
            about["deadline"] = life.now + rng.randrange(40)
        operation = rng.random()
        if operation < 0.10 and len(life.live) < 40:
            life.generate(some_ids(), rng.randint(1, 12), rng.choice([1, 1, 2, 5]), rng.random() < 0.2, **about)
        elif operation < 0.14 and len(life.live) < 40:
            life.score(some_ids(), some_ids(), **about)
        elif operation < 0.16 and len(life.live) < 40:
            life.embed(some_ids(), rng.choice(["mean", "last"]), **about)
        elif operation < 0.19 and life.live:
            life.abort(rng.choice(sorted(life.live)))
        else:
            life.now += 1
            life.step(draw)
        life.check_books()
    life.drain(draw)
    return life


def test_ten_thousand_random_operations_leave_every_block_free():
    life = live_long(10_000, seed=1)
    # It was a life worth testing.
    assert life.num_requests > 500
    assert life.s.num_preemptions > 100
    assert min(life.num_forks, life.num_copies, life.num_cached) > 100


def _share_the_last_block(blocks: BlockManager, parent: Sequence, child: Sequence) -> None:
    for block in parent.block_table:
        blocks._references[block] += 1
    child.block_table.extend(parent.block_table)
    child.num_computed, child.num_registered = parent.num_computed, parent.num_registered


def _hash_without_parent(blocks: BlockManager, seq: Sequence, num_full: int) -> None:
    for index in range(len(seq.block_digests), num_full):
        seq.block_digests.append(seq.token_ids[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE].tobytes())


def _forget_to_release(scheduler: Scheduler, seq: Sequence) -> None:
    scheduler._by_id[seq.request_id].remove(seq)
    (scheduler.running if seq in scheduler.running else scheduler.waiting).remove(seq)


def _preempt_without_waiting(scheduler: Scheduler, seq: Sequence) -> Sequence:
    scheduler.running.remove(seq)
    scheduler.blocks.release(seq)
    return seq


def _keep_the_copies(blocks: BlockManager) -> list[tuple[int, int]]:
    return blocks._copies


def _register_too_much(blocks: BlockManager, seq: Sequence) -> None:
    seq.num_computed += 1
    try:
        _register(blocks, seq)
    finally:
        seq.num_computed -= 1


_register = BlockManager.register
_allocate = BlockManager.allocate


def _hide_needed_rows(blocks: BlockManager, seq: Sequence) -> None:
    _allocate(blocks, seq)
    if seq.num_computed < seq.num_inputs - BLOCK_SIZE and seq.num_computed:
        seq.num_computed += BLOCK_SIZE


@pytest.mark.parametrize(
    ("owner", "name", "mutant"),
    [
        (BlockManager, "fork", _share_the_last_block),
        (BlockManager, "_extend_digests", _hash_without_parent),
        (BlockManager, "take_copies", lambda blocks: []),
        (BlockManager, "take_copies", _keep_the_copies),
        (BlockManager, "register", _register_too_much),
        (BlockManager, "allocate", _hide_needed_rows),
        (Scheduler, "finish", _forget_to_release),
        (Scheduler, "expire", lambda scheduler: []),
        (Scheduler, "_preempt", _preempt_without_waiting),
        (Generation, "first_needed", property(lambda seq: len(seq.token_ids) - 1)),
        (Scoring, "first_needed", property(lambda seq: seq.num_inputs - 1)),
    ],
)
def test_a_planted_error_is_noticed(owner: type, name: str, mutant: object, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(owner, name, mutant)
    with pytest.raises((AssertionError, block_manager.OutOfBlocks, KeyError, ValueError, IndexError)):
        live_long(3_000, seed=2)
