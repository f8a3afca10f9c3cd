"""The budget of a step, on simulated machines whose time is known."""

import random
import statistics
from collections.abc import Callable

import pytest

from services.inference.block_manager import BlockManager
from services.inference.sampling import SamplingParams
from services.inference.scheduler import Scheduler
from services.inference.sequence import Generation
from services.inference.step_time import StepBudget, StepLoad, StepTime

Cost = Callable[[StepLoad], float]


def laptop(load: StepLoad) -> float:
    """Milliseconds."""
    return 25 + 2 * load.num_decodes + 0.002 * load.decode_keys + 1.5 * load.prefill_rows + 5e-4 * load.prefill_keys


class Machine:
    """A scheduler whose steps take what `cost` says, give or take a few percent."""

    def __init__(self, cost: Cost, *, max_step_ms: float = 0.0) -> None:
        self.cost = cost
        self.noise = random.Random(0)
        self.num_requests = 0
        self.s = Scheduler(
            BlockManager(4096, 16),
            max_batched_tokens=512,
            max_running=32,
            max_waiting=256,
            max_step_ms=max_step_ms,
            clock=lambda: 0.0,
        )

    def add(self, num_prompt: int, max_tokens: int) -> None:
        self.num_requests += 1
        prompt = [self.num_requests] * num_prompt
        self.s.add(Generation(self.num_requests, prompt, SamplingParams(seed=0, max_tokens=max_tokens), 1 << 14))

    def step(self) -> tuple[float, int]:
        """Its milliseconds, and the prompt tokens in it."""
        chunks = self.s.schedule()
        load = self.s._load
        ms = self.cost(load) * self.noise.uniform(0.95, 1.05)
        self.s.computed(chunks)
        self.s.measured(ms / 1000)
        for seq, _ in chunks:
            if seq.num_pending == 0 and isinstance(seq, Generation) and seq.append(7):
                self.s.finish(seq)
        return ms, sum(num_tokens for _, num_tokens in chunks) - load.num_decodes

    def stream(self, count: int) -> None:
        """Let `count` streams run for a while."""
        for _ in range(count):
            self.add(100, 4000)
        while self.s.waiting or any(seq.num_pending > 1 for seq in self.s.running):
            self.step()

    def prompt(self, num_tokens: int) -> list[float]:
        """Milliseconds of the steps until the first token of a new prompt."""
        self.add(num_tokens, 1)
        steps = []
        while not steps or any(seq.num_pending > 1 for seq in self.s.running):
            steps.append(self.step()[0])
        return steps


def test_without_streams_a_prompt_gets_the_whole_budget():
    machine = Machine(laptop)
    machine.add(1500, 1)
    assert [machine.step()[1] for _ in range(3)] == [512, 512, 476]


@pytest.mark.parametrize("streams", [1, 8, 30])
def test_a_long_prompt_stretches_no_step_beyond_what_streams_bear(streams: int):
    machine = Machine(laptop)
    machine.stream(streams)
    alone = statistics.median(machine.step()[0] for _ in range(20))
    steps = machine.prompt(2000)
    assert max(steps) < 3 * alone
    assert statistics.median(steps) > 1.8 * alone  # and the time there is, is used


def test_steps_keep_to_the_time_that_is_asked_for():
    machine = Machine(laptop, max_step_ms=120)
    machine.stream(8)
    steps = machine.prompt(2000)
    assert max(steps) < 120 * 1.15
    assert statistics.median(steps) > 120 * 0.7


def test_a_machine_that_slows_down_is_noticed_within_a_few_steps():
    machine = Machine(laptop, max_step_ms=200)
    machine.stream(8)
    machine.prompt(2000)
    machine.cost = lambda load: 2 * laptop(load)
    steps = machine.prompt(2000)
    assert max(steps[10:-1]) < 200 * 1.2


def test_a_long_time_without_prompts_does_not_wipe_out_what_they_cost():
    machine = Machine(laptop, max_step_ms=120)
    machine.stream(8)
    machine.prompt(500)
    for _ in range(3000):
        machine.step()
    assert max(machine.prompt(500)) < 120 * 1.2


def test_one_hiccup_is_no_trend():
    machine = Machine(laptop, max_step_ms=120)
    machine.stream(8)
    machine.prompt(500)
    machine.cost = lambda load: 5000
    machine.step()
    machine.cost = laptop
    assert statistics.median(machine.prompt(1000)) > 120 * 0.6


def test_prompts_go_on_even_where_decodes_alone_take_too_long():
    machine = Machine(laptop, max_step_ms=10)
    machine.stream(8)
    assert len(machine.prompt(160)) == 10  # a block of 16 tokens in each step


def test_the_more_prompts_wait_the_more_of_the_time_they_get():
    machine = Machine(laptop)
    machine.stream(8)
    _, few = (machine.add(4000, 1), machine.step()[1])
    for _ in range(32):
        machine.add(4000, 1)
    assert machine.step()[1] > 1.5 * few


def test_scored_rows_count_twice():
    time = StepTime()
    for rows in (100, 300, 200) * 10:
        time.observe(StepLoad(prefill_rows=rows), 2.0 * rows)
    budget = StepBudget(512, 100.0, 1, time)
    assert budget.take(0, 512, rows_per_token=2) == pytest.approx(25, abs=1)


def test_a_prompt_far_into_its_context_gets_fewer_tokens():
    time = StepTime()
    for start in (0, 500, 2000, 8000) * 20:
        load = StepLoad(prefill_rows=100, prefill_keys=100.0 * (start + 50))
        time.observe(load, 2.0 * load.prefill_rows + 1e-3 * load.prefill_keys)
    near, far = (StepBudget(512, 300.0, 1, time).take(start, 512, rows_per_token=1) for start in (0, 8000))
    assert far == pytest.approx(300 / (2 + 8), rel=0.1)
    assert near > 4 * far
    assert time.prefill_rows(time.prefill_ms(77, 3000) + 1e-6, 3000) == 77
