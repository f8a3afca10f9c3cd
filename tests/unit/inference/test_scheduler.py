import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.common.errors import ResourceExhausted
from services.inference.block_manager import BlockManager
from services.inference.sampling import SamplingParams
from services.inference.scheduler import Chunk, Scheduler
from services.inference.sequence import Generation


def scheduler(
    *, num_blocks: int = 64, block_size: int = 4, budget: int = 16, max_running: int = 8, max_waiting: int = 8
) -> Scheduler:
    blocks = BlockManager(num_blocks, block_size)
    return Scheduler(blocks, max_batched_tokens=budget, max_running=max_running, max_waiting=max_waiting)


def request(request_id: int, num_prompt: int, *, max_tokens: int = 8) -> Generation:
    """Ids that no other request shares, so that nothing comes from the prefix cache."""
    prompt = [request_id * 1000 + i for i in range(num_prompt)]
    return Generation(request_id, prompt, SamplingParams(seed=0, max_tokens=max_tokens), 1 << 30)


def step(scheduler: Scheduler) -> list[tuple[int, int]]:
    """One step in which every completed sequence draws a token; returns (request id, tokens computed)."""
    chunks = scheduler.schedule()
    scheduler.computed(chunks)
    draw(scheduler, chunks)
    return [(seq.request_id, num_tokens) for seq, num_tokens in chunks]


def draw(scheduler: Scheduler, chunks: list[Chunk]) -> None:
    for seq, _ in chunks:
        if seq.num_pending == 0 and isinstance(seq, Generation) and seq.append(7):
            scheduler.finish(seq)


def test_a_long_prompt_is_computed_in_chunks_of_the_budget():
    s = scheduler(budget=16)
    s.add(request(1, 40))
    assert [step(s) for _ in range(4)] == [[(1, 16)], [(1, 16)], [(1, 8)], [(1, 1)]]


def test_running_streams_go_on_while_a_long_prompt_is_computed():
    s = scheduler(budget=16)
    s.add(request(1, 4))
    step(s)
    s.add(request(2, 40))
    assert step(s) == [(1, 1), (2, 15)]
    assert step(s) == [(1, 1), (2, 15)]


def test_what_is_left_of_a_step_goes_to_the_next_in_the_queue():
    s = scheduler(budget=16)
    s.add(request(1, 10))
    s.add(request(2, 10))
    assert step(s) == [(1, 10), (2, 6)]
    assert step(s) == [(1, 1), (2, 4)]


def test_single_tokens_come_first_in_a_step():
    s = scheduler(budget=16)
    s.add(request(1, 20))
    step(s)
    s.add(request(2, 1))
    assert step(s) == [(2, 1), (1, 4)]


def test_no_more_than_max_running_sequences_run():
    s = scheduler(max_running=2)
    for number in range(3):
        s.add(request(number, 2))
    assert len(step(s)) == 2
    assert len(s.waiting) == 1


def test_when_blocks_run_out_the_newest_is_preempted_and_the_oldest_goes_on():
    s = scheduler(num_blocks=6, block_size=4)
    s.add(request(1, 8))
    s.add(request(2, 8))
    assert step(s) == [(1, 8), (2, 8)]
    for _ in range(4):
        assert step(s) == [(1, 1), (2, 1)]  # the last fills its third block: all six are full
    assert step(s) == [(1, 1)]
    assert [seq.request_id for seq in s.waiting] == [2]


def test_who_is_admitted_is_not_preempted_in_the_next_step():
    s = scheduler(num_blocks=5, block_size=4)
    s.add(request(1, 8))
    s.add(request(2, 8))  # there are blocks for it now, but not when both go on
    assert step(s) == [(1, 8)]
    assert s.num_preemptions == 0


def test_a_preempted_sequence_is_first_in_the_queue_and_ends_with_all_its_tokens():
    s = scheduler(num_blocks=6, block_size=4, budget=16)
    first, second = request(1, 8), request(2, 8)
    for seq in (first, second, request(3, 4)):
        s.add(seq)
    for _ in range(6):
        step(s)
    assert [seq.request_id for seq in s.waiting] == [2, 3]
    assert s.num_preemptions == 1
    while s.has_work:
        step(s)
    assert len(first.token_ids) == len(second.token_ids) == 16
    assert s.blocks.num_free == 6


def test_a_request_too_many_is_refused_with_the_length_of_the_queue():
    s = scheduler(max_waiting=2)
    s.add(request(1, 4))
    s.add(request(2, 4))
    with pytest.raises(ResourceExhausted, match="2 requests wait"):
        s.add(request(3, 4))


@pytest.mark.parametrize("started", [False, True])
def test_an_aborted_request_gives_back_its_blocks(started: bool):
    s = scheduler()
    s.add(request(1, 30))
    if started:
        step(s)
    s.abort(1)
    s.abort(1)  # again: nothing
    assert not s.has_work
    assert s.blocks.num_free == 64


def test_a_budget_below_the_number_of_running_sequences_is_refused():
    with pytest.raises(ValueError, match="max_batched_tokens=4 is below max_running=8"):
        scheduler(budget=4)


class Life(RuleBasedStateMachine):
    """Random arrivals, steps and aborts on a cache that is always short of blocks."""

    NUM_BLOCKS, BLOCK_SIZE, BUDGET = 10, 3, 7

    def __init__(self) -> None:
        super().__init__()
        self.s = scheduler(
            num_blocks=self.NUM_BLOCKS, block_size=self.BLOCK_SIZE, budget=self.BUDGET, max_running=4, max_waiting=99
        )
        self.next_id = 0
        self.live: dict[int, Generation] = {}

    @rule(prompt=st.lists(st.integers(0, 1), min_size=1, max_size=20), max_tokens=st.integers(1, 10))
    def arrive(self, prompt: list[int], max_tokens: int) -> None:
        seq = Generation(self.next_id, prompt, SamplingParams(seed=0, max_tokens=max_tokens), 30)
        self.next_id += 1
        self.live[seq.request_id] = seq
        self.s.add(seq)

    @precondition(lambda self: self.s.has_work)
    @rule(token_id=st.integers(0, 1))
    def step(self, token_id: int) -> None:
        oldest = min(self.live)
        chunks = self.s.schedule()
        assert chunks, "there is work but none is done"
        assert oldest in {seq.request_id for seq, _ in chunks}, "the oldest request waits"
        assert sum(num_tokens for _, num_tokens in chunks) <= self.BUDGET
        for seq, num_tokens in chunks:
            assert 1 <= num_tokens <= seq.num_pending
            assert len(seq.block_table) * self.BLOCK_SIZE >= seq.num_computed + num_tokens
        self.s.computed(chunks)
        for seq, _ in chunks:
            assert isinstance(seq, Generation)
            if seq.num_pending == 0 and seq.append(token_id):
                self.s.finish(seq)
                del self.live[seq.request_id]

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.live)))
        self.s.abort(request_id)
        del self.live[request_id]

    @invariant()
    def only_running_sequences_hold_blocks(self) -> None:
        held = {block for seq in self.s.running for block in seq.block_table}
        assert self.s.blocks.num_free == self.NUM_BLOCKS - len(held)
        assert not any(seq.block_table for seq in self.s.waiting)

    def teardown(self) -> None:
        while self.s.has_work:
            self.step(0)
        assert self.s.blocks.num_free == self.NUM_BLOCKS


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
