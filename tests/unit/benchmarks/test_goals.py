"""Tables and goals from rows as a run writes them."""

import pytest

from benchmarks import shapes
from benchmarks.figures import Figure, short, speed_table, summarize, table
from benchmarks.goals import Goal, goal_table, goals_of
from benchmarks.protocol import Task
from benchmarks.rounds import rows_of
from benchmarks.serve import report
from bloom.config import BloomConfig

TASK = Task(model="", weights="")
CONFIG = BloomConfig.preset("560m")
Row = dict[str, object]


def rows(contestant: str, prefill: float, *decode: float, number: int = 0) -> list[Row]:
    found: list[Row] = [{"kind": "prefill", "tokens_per_s": prefill, "tokens": 512, "seconds": 512 / prefill}]
    for batch, rate in zip((1, 8, 32), decode, strict=True):
        found.append({"kind": "decode", "batch": batch, "tokens_per_s": rate})
    found.append({"kind": "run", "exit_code": 0, "idle_before": True, "foreign_cpu_s": 0.5})
    return [row | {"contestant": contestant, "round": number} for row in found]


def by_text(goals: list[Goal]) -> dict[str, Goal]:
    return {goal.text: goal for goal in goals}


def test_the_median_of_the_rounds_counts_and_the_extremes_are_kept() -> None:
    measured = [
        row for number, rate in enumerate((9.0, 30.0, 10.0)) for row in rows("vllm bf16", rate, 1, 1, 1, number=number)
    ]
    assert summarize(measured)["vllm bf16", "prefill"] == Figure(median=10, least=9, greatest=30, count=3)


def test_bf16_is_set_against_the_best_16_bit_peer_and_never_against_an_int8_one() -> None:
    measured = rows("anthesis bfloat16", 630, 33, 160, 300)
    measured += rows("vllm bf16", 600, 25, 150, 200) + rows("llama.cpp f16", 265, 30, 80, 110)
    measured += rows("llama.cpp q8_0", 290, 48, 400, 400)
    goals = by_text(goals_of(summarize(measured), TASK, CONFIG))
    one = goals["anthesis bfloat16, decode 1: against the best 16-bit peer (llama.cpp f16)"]
    assert one.value == pytest.approx(1.1)
    assert one.reached
    eight = goals["anthesis bfloat16, decode 8: against the best 16-bit peer (vllm bf16)"]
    assert eight.value == pytest.approx(160 / 150)
    assert not eight.reached
    assert goals["anthesis bfloat16, prefill: against vllm bf16"].value == pytest.approx(1.05)


def test_int8_in_batches_is_set_against_the_best_peer_of_any_precision() -> None:
    measured = rows("anthesis int8", 900, 60, 330, 400)
    measured += rows("vllm bf16", 600, 25, 150, 200) + rows("ctranslate2 int8", 667, 20, 90, 150)
    goals = by_text(goals_of(summarize(measured), TASK, CONFIG))
    assert goals["anthesis int8, decode 8: against the best peer (vllm bf16)"].value == pytest.approx(2.2)
    assert goals["anthesis int8, decode 32: against the best peer (vllm bf16)"].bound == 1.8
    assert goals["anthesis int8, prefill: against ctranslate2 int8"].value == pytest.approx(900 / 667)
    assert not any("llama.cpp q8_0" in text for text in goals)  # it was not measured


def test_bandwidth_peak_memory_and_start_are_set_against_the_machine() -> None:
    read = shapes.decode_bytes(CONFIG, weights="bfloat16", batch=1, context=160)
    flops = shapes.prefill_flops(CONFIG, 512)
    measured = rows("anthesis bfloat16", 512, 20, 1, 1)
    measured.append({"kind": "machine", "round": 0, "read_gb_s": 25 * read / 1e9, "bf16_gflops": 2 * flops / 1e9})
    ours = {"contestant": "anthesis bfloat16", "round": 0}
    measured.append(ours | {"kind": "memory", "resident_bytes": 120, "weight_bytes": 70, "cache_bytes": 30})
    measured.append(ours | {"kind": "start", "first_token_s": 4.0})
    goals = goals_of(summarize(measured), TASK, CONFIG)
    values = {goal.text.split(":")[1].strip().split(" ", 1)[-1]: (round(goal.value, 3), goal.reached) for goal in goals}
    assert values == {
        "GB/s of the measured read bandwidth": (80.0, False),
        "GFLOP/s of the measured bf16 GEMM peak": (50.0, False),
        "memory against 0 MiB of weights and cache": (1.2, False),
        "start to first token": (4.0, True),
    }


def test_a_goal_with_an_upper_bound_is_reached_below_it() -> None:
    assert Goal(text="", value=1.14, bound=1.15, at_most=True).reached
    assert not Goal(text="", value=1.16, bound=1.15, at_most=True).reached


def test_the_goal_table_says_what_was_not_reached() -> None:
    lines = goal_table(
        [Goal(text="faster", value=1.0, bound=1.5), Goal(text="smaller", value=1.0, bound=1.5, at_most=True)]
    )
    assert [line.split("|")[-2].strip() for line in lines.splitlines()] == ["reached", "-------", "NO", "yes"]


def test_the_report_has_every_contestant_and_names_those_that_failed() -> None:
    measured = rows("vllm bf16", 600, 25, 150, 200)
    measured.append({"kind": "run", "contestant": "anthesis int8", "round": 0, "exit_code": 1, "idle_before": False})
    text = report(measured, TASK)
    assert "| vllm bf16 " in text
    assert "FAILED: anthesis int8" in text
    assert "NOT IDLE before: anthesis int8" in text


def test_what_was_not_measured_is_a_dash() -> None:
    line = speed_table(summarize(rows("vllm bf16", 600, 25, 150, 200)), (1, 64)).splitlines()[-1]
    assert [cell.strip() for cell in line.split("|")][1:5] == ["vllm bf16", "600 (600–600)", "25 (25–25)", "–"]


def test_rows_are_found_among_what_libraries_write() -> None:
    assert rows_of('loading\nROW {"kind": "start"}\nWARNING ROW\n') == [{"kind": "start"}]


def test_a_table_is_markdown_in_equal_columns() -> None:
    assert table(["a", "long"], [["xyz", "1"]]) == "| a   | long |\n| --- | ---- |\n| xyz | 1    |"


@pytest.mark.parametrize(("value", "text"), [(0.31234, "0.312"), (9.876, "9.88"), (123.4, "123"), (9437.2, "9,437")])
def test_figures_show_three_digits(value: float, text: str) -> None:
    assert short(value) == text
