"""Arrivals, streams in time, and what a soak calls a leak."""

from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise

import pytest

from benchmarks.misbehaviour import Outcome
from benchmarks.openai_load import goals_of
from benchmarks.profile import stage_name, step_ms
from benchmarks.soak import KILL_PHASES, PHASES, Look, Soak, violations
from benchmarks.workload import Lengths, Stream, arrival_times, percentile, requests


def test_arrivals_are_a_poisson_process_of_the_rate() -> None:
    times = arrival_times(10.0, 1000.0, seed=0)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert variance == pytest.approx(mean**2, rel=0.1)


def test_requests_have_the_lengths_asked_for_and_repeat_with_the_seed() -> None:
    lengths = Lengths(prompt=(3, 5), output=(7, 9))
    drawn = list(islice(requests(lengths, vocab=50, seed=1), 200))
    assert {len(one.prompt_ids) for one in drawn} == {3, 4, 5}
    assert {one.max_tokens for one in drawn} == {7, 8, 9}
    assert drawn == list(islice(requests(lengths, vocab=50, seed=1), 200))


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (100, 100), (0, 1)])
def test_a_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], percent) == expected


def test_a_percentile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="measure longer"):
        percentile([], 50)


def test_tokens_of_one_message_are_no_time_apart() -> None:
    assert Stream([1.0, 1.5, 1.5]).gaps_s == [0.5, 0.0]


def test_a_step_is_measured_while_all_streams_decode() -> None:
    early = Stream([0.0, 1.0, 2.0, 3.0, 4.0])  # seconds; alone at first
    late = Stream([2.0, 3.0, 4.0, 5.0, 6.0])
    assert step_ms([early, late]) == pytest.approx(1000.0)


def test_stages_of_the_cpu_operators_have_names() -> None:
    names = [stage_name(stage, final=6) for stage in range(7)]
    layer = ["norm, qkv, attention, dense"] * 2 + ["norm, MLP"] * 2
    assert names == ["embedding and norm"] * 2 + layer + ["final norm"]


def test_request_throughput_is_set_against_the_better_vllm_in_the_median() -> None:
    results = {
        "vllm bfloat16, its default": [{"request_throughput": rate} for rate in (0.5, 1.5, 9.0)],
        "vllm bfloat16, all threads": [{"request_throughput": rate} for rate in (1.0, 2.0, 3.0)],
        "anthesis int8": [{"request_throughput": rate} for rate in (3.0, 5.0, 4.0)],
    }
    (goal,) = goals_of(results)
    assert (goal.value, goal.bound, goal.reached) == (2.0, 2.0, True)


LOOK = Look(
    at_s=0.0,
    calls=100,
    free_blocks=85,
    num_blocks=85,
    worker_bytes=200 << 20,
    engine_bytes=300 << 20,
    engine_pids=(7,),
    num_files=20,
    num_tasks=15,
)


def soak_of(**last: object) -> Soak:
    looks = [replace(LOOK, at_s=float(number)) for number in range(PHASES)]
    looks[-1] = replace(looks[-1], **last)  # type: ignore[arg-type]
    return Soak(outcomes=Counter({Outcome("complete", "result"): 9}), looks=looks, kills=len(KILL_PHASES))


def test_a_soak_in_which_all_came_back_holds() -> None:
    assert violations(soak_of()) == []


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ({"free_blocks": 84}, "1 blocks were not free"),
        ({"worker_bytes": 240 << 20}, "the worker grew from 200.0 to 240.0 MiB"),
        ({"engine_bytes": 340 << 20}, "the engine grew"),
        ({"num_files": 30}, "open files went from 20 to 30"),
        ({"num_tasks": 20}, "asyncio tasks went from 15 to 20"),
        ({"engine_pids": ()}, "0 engine processes"),
    ],
)
def test_a_soak_names_what_leaked(last: dict[str, object], said: str) -> None:
    assert any(said in found for found in violations(soak_of(**last)))


@pytest.mark.parametrize(
    ("action", "status"), [("nonsense", "result"), ("complete", "INTERNAL"), ("score", "HUNG"), ("cancel", "UNKNOWN")]
)
def test_a_call_that_ended_as_none_may_is_named(action: str, status: str) -> None:
    result = soak_of()
    result.outcomes[Outcome(action, status)] += 2
    assert f"2 calls to {action} ended as {status}" in violations(result)
