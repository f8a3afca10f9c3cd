"""Who runs when. `test_scheduler_life` has the accounting under random operations, `test_step_time` the budget."""

import pytest

from services.common.errors import InvalidArgument, ResourceExhausted
from services.inference.block_manager import BlockManager
from services.inference.sampling import SamplingParams
from services.inference.scheduler import Chunk, Scheduler
from services.inference.sequence import Generation, Scoring


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def scheduler(
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    budget: int = 16,
    max_running: int = 8,
    max_waiting: int = 8,
    clock: Clock | None = None,
) -> Scheduler:
    return Scheduler(
        BlockManager(num_blocks, block_size),
        max_batched_tokens=budget,
        max_running=max_running,
        max_waiting=max_waiting,
        clock=clock or Clock(),
    )


def request(request_id: int, num_prompt: int, *, max_tokens: int = 8, choices: int = 1, **about: object) -> Generation:
    """Ids that no other request shares, so that nothing comes from the prefix cache."""
    prompt = [request_id * 1000 + i for i in range(num_prompt)]
    sampling = SamplingParams(seed=0, max_tokens=max_tokens, n=choices, best_of=choices)
    return Generation(request_id, prompt, sampling, 256, **about)


def step(scheduler: Scheduler) -> list[tuple[int, int]]:
    """One step in which every completed sequence draws a token; returns (request id, tokens computed)."""
    chunks = scheduler.schedule()
    scheduler.computed(chunks)
    draw(scheduler, chunks)
    return [(seq.request_id, num_tokens) for seq, num_tokens in chunks]


def draw(scheduler: Scheduler, chunks: list[Chunk]) -> None:
    done = [seq for seq, _ in chunks if seq.num_pending == 0]
    choices = [choice for seq in done if isinstance(seq, Generation) for choice in scheduler.fork(seq)]
    for choice in choices:
        if choice.append(7):
            scheduler.finish(choice)
    for scored in done:
        if isinstance(scored, Scoring):
            scheduler.finish(scored)


def run_dry(scheduler: Scheduler) -> None:
    while scheduler.has_work:
        step(scheduler)
    assert scheduler.blocks.num_free == scheduler.blocks.num_blocks


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
    s = scheduler(max_running=1, max_waiting=2)
    for number in range(3):  # one of them will run, whether it has begun or not
        s.add(request(number, 4))
    step(s)
    with pytest.raises(ResourceExhausted, match="2 requests wait already and 1 run"):
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


def test_what_the_cache_can_never_hold_is_refused_with_the_most_it_can():
    s = scheduler(num_blocks=4, block_size=4)
    with pytest.raises(InvalidArgument, match="18 tokens can never fit the cache; send at most 16"):
        s.add(request(1, 10))
    assert not s.has_work


def test_the_refused_are_told_to_come_back_one_after_another_as_requests_end():
    clock = Clock()
    s = scheduler(max_running=1, max_waiting=1, clock=clock)
    for number in range(50):  # one request a second
        s.add(request(number, 1, max_tokens=1))
        clock.now += 1
        step(s)
    s.add(request(100, 1, max_tokens=9))
    step(s)
    s.add(request(101, 1))
    delays = []
    for number in range(3):
        with pytest.raises(ResourceExhausted) as refusal:
            s.add(request(200 + number, 1))
        delays.append(refusal.value.retry_delay_s)
    assert delays == pytest.approx([1, 2, 3], rel=0.1)
    run_dry(s)


def test_a_more_urgent_request_takes_the_place_of_the_least_urgent():
    s = scheduler(max_running=2)
    s.add(request(1, 4, priority=5))
    s.add(request(2, 4))
    step(s)
    s.add(request(3, 4, priority=-1))
    assert step(s) == [(2, 1), (3, 4)]
    assert [seq.request_id for seq in s.waiting] == [1]
    run_dry(s)


def test_a_more_urgent_request_takes_blocks_from_the_least_urgent_alone():
    s = scheduler(num_blocks=8, block_size=4)
    s.add(request(1, 8, priority=5))
    s.add(request(2, 8))
    step(s)
    s.add(request(3, 12, max_tokens=4, priority=-1))
    assert (3, 12) in step(s)
    assert [seq.request_id for seq in s.running] == [3, 2]
    run_dry(s)


def test_an_equally_urgent_request_waits():
    s = scheduler(max_running=1)
    s.add(request(1, 4))
    step(s)
    s.add(request(2, 4))
    assert step(s) == [(1, 1)]


def test_the_single_request_of_a_client_is_not_delayed_by_two_hundred_of_another():
    s = scheduler(num_blocks=1024, max_running=8, max_waiting=200)
    for number in range(200):
        s.add(request(number, 40, max_tokens=50, client="many"))
    for _ in range(100):
        step(s)
    assert len(s.running) == 8
    s.add(request(1000, 4, client="single"))
    assert (1000, 4) in step(s)  # at once, though no place was free
    steps = 1
    while any(seq.client == "single" for seq in s.running):
        step(s)
        steps += 1
    assert steps == 8  # a token in every step, as if it were alone
    run_dry(s)


def test_prompts_of_two_clients_share_the_budget_however_many_each_has():
    s = scheduler(num_blocks=1024, max_running=64, max_waiting=99, budget=64)
    for number in range(20):
        s.add(request(number, 64, max_tokens=1, client="many"))
    for number in range(20, 24):
        s.add(request(number, 64, max_tokens=1, client="few"))
    served = [step(s)[0][0] for _ in range(8)]
    assert sum(number >= 20 for number in served) == 4


def test_a_client_that_was_away_has_saved_nothing_up():
    s = scheduler(num_blocks=1024, max_running=64, max_waiting=99, budget=64)
    for number in range(30):
        s.add(request(number, 64, max_tokens=1, client="always"))
    for _ in range(10):
        step(s)
    for number in range(100, 110):
        s.add(request(number, 64, max_tokens=1, client="back"))
    served = [step(s)[0][0] for _ in range(10)]
    assert sum(number >= 100 for number in served) == 5


def test_clients_do_not_push_each_other_out_in_turn():
    s = scheduler(max_running=2)
    s.add(request(1, 4, max_tokens=30, client="a"))
    s.add(request(2, 4, max_tokens=30, client="b"))
    step(s)
    s.add(request(3, 4, max_tokens=30, client="c"))
    for _ in range(29):
        step(s)
    assert s.num_preemptions == 0


@pytest.mark.parametrize("started", [False, True])
def test_a_request_past_its_deadline_is_dropped_with_its_blocks(started: bool):
    clock = Clock()
    s = scheduler(clock=clock)
    s.add(request(1, 30, deadline=5.0))
    s.add(request(2, 4, deadline=7.0))
    if started:
        step(s)
    clock.now = 5.0
    assert s.expire() == [1]
    assert s.expire() == []
    step(s)
    clock.now = 7.0
    assert s.expire() == [2]
    assert not s.has_work
    assert s.schedule() == []
    assert s.blocks.num_free == 64


def test_choices_share_the_full_blocks_of_their_prompt_and_copy_the_last():
    s = scheduler(block_size=4)
    s.add(request(1, 10, choices=3))
    assert step(s) == [(1, 10)]  # once
    tables = [list(seq.block_table) for seq in s.running]
    assert tables[0][:2] == tables[1][:2] == tables[2][:2]
    assert s.blocks.take_copies() == [(tables[0][2], tables[1][2]), (tables[0][2], tables[2][2])]
    assert s.blocks.num_free == 64 - 5
    assert step(s) == [(1, 1), (1, 1), (1, 1)]
    run_dry(s)


def test_choices_of_a_prompt_that_fills_its_blocks_need_no_copy():
    s = scheduler(block_size=4)
    s.add(request(1, 8, choices=4))
    step(s)
    assert s.blocks.take_copies() == []
    assert s.blocks.num_free == 64 - 2


def test_a_choice_without_a_place_waits_and_takes_the_prompt_from_the_cache():
    s = scheduler(block_size=4, max_running=2)
    s.add(request(1, 10, max_tokens=3, choices=3))
    step(s)
    assert [len(seq.token_ids) for seq in (*s.running, *s.waiting)] == [11, 11, 11]  # all have their first token
    step(s)
    step(s)  # two choices end
    assert step(s) == [(1, 3)]  # of 11 tokens eight are in shared blocks
    run_dry(s)


def test_choices_are_preempted_one_by_one_the_last_first():
    s = scheduler(num_blocks=7, block_size=4)
    s.add(request(1, 11, max_tokens=12, choices=3))
    for _ in range(3):
        step(s)
    assert [seq.choice for seq in s.running] == [0, 1]
    assert [seq.choice for seq in s.waiting] == [2]
    run_dry(s)


def test_aborting_a_request_drops_all_its_choices():
    s = scheduler(max_running=2)
    s.add(request(1, 10, choices=3))
    step(s)
    s.abort(1)
    assert not s.has_work
    assert len(s.waiting) == 0
    assert s.blocks.num_free == 64


def test_of_requests_that_begin_alike_and_come_together_one_computes_what_they_share():
    s = scheduler(num_blocks=256, budget=64)
    context = list(range(40))
    for number in range(4):
        s.add(Scoring(number, context, [number, 1, 2]))
    s.add(request(9, 5))
    assert step(s) == [(0, 42), (9, 5)]  # the others wait for it, and nobody else does
    assert step(s) == [(9, 1), (1, 6), (2, 6), (3, 6)]
    assert s.num_prefix_hit_tokens == 3 * 36


def test_nobody_waits_for_the_blocks_of_a_less_urgent_request():
    s = scheduler(num_blocks=256, budget=16)
    context = list(range(40))
    s.add(Scoring(1, context, [1], priority=1))
    step(s)
    s.add(Scoring(2, context, [2]))
    assert (2, 16) in step(s)


def test_who_waits_for_blocks_computes_them_when_the_other_is_gone():
    s = scheduler(num_blocks=256, budget=16)
    context = list(range(40))
    s.add(Scoring(1, context, [1]))
    s.add(Scoring(2, context, [2]))
    assert step(s) == [(1, 16)]
    s.abort(1)
    assert step(s) == [(2, 16)]  # its first four blocks are in the cache, the others are its own to compute
    assert s.running[0].num_cached == 16


def test_who_is_waited_for_is_computed_in_the_turn_of_who_waits():
    s = scheduler(num_blocks=256, budget=16)
    prompt = list(range(100))
    s.add(Scoring(1, prompt, [1], client="many"))
    step(s)
    s.add(request(2, 200, client="other"))
    s.add(Scoring(3, prompt, [2], client="single"))
    steps = [step(s)[0] for _ in range(6)]
    assert [request_id for request_id, _ in steps].count(2) <= 1  # else every other step would be of request 2
    assert (3, 4) in step(s) or (3, 4) in steps
