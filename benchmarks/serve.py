"""Our engine beside its peers on one machine: `python -m benchmarks.serve`. Prints tables; rows go to a file.

A BLOOM-560m of random weights, greedy, fixed lengths. Tokens/s of decoding are B x 63 / (t_64 - t_1): the two runs side
by side.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.contestants import WORK, choose
from benchmarks.figures import Row, speed_table, summarize
from benchmarks.goals import goal_table, goals_of
from benchmarks.machine import cpu_name
from benchmarks.protocol import Task
from benchmarks.rounds import IDLE_TIMEOUT_S, run_rounds
from bloom.config import BloomConfig

PRESET = "560m"


def parser() -> argparse.ArgumentParser:
    defaults = Task(model="", weights="")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description="Speed, side by side with peers.")
    parser.add_argument("names", nargs="*", help="only contestants with one of these words in their names")
    parser.add_argument("--work", type=Path, default=WORK, help="the peers' folder (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=defaults.threads)
    parser.add_argument("--batches", type=int, nargs="+", default=defaults.batches)
    parser.add_argument("--prompt", type=int, default=defaults.prompt_tokens, help="tokens (%(default)s)")
    parser.add_argument("--new", type=int, default=defaults.new_tokens, help="tokens drawn for each (%(default)s)")
    parser.add_argument("--prefill", type=int, default=defaults.prefill_tokens, help="tokens (%(default)s)")
    parser.add_argument(
        "--idle-timeout", type=float, default=IDLE_TIMEOUT_S, metavar="S", help="wait for an idle machine"
    )
    parser.add_argument("--rows", type=Path, help="JSON lines, added to (WORK/serve.jsonl)")
    parser.add_argument("--report", action="store_true", help="measure nothing: tables of the rows there are")
    return parser


def task_of(args: argparse.Namespace) -> Task:
    return Task(
        model="",
        weights="",
        threads=args.threads,
        prompt_tokens=args.prompt,
        new_tokens=args.new,
        batches=tuple(args.batches),
        prefill_tokens=args.prefill,
    )


def main() -> int:
    args = parser().parse_args()
    task, work = task_of(args), args.work.resolve()
    path = args.rows or work / "serve.jsonl"
    try:
        contestants = choose(args.names)
        if args.report:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
        else:
            rows = []
            with path.open("a") as file:

                def keep(row: Row) -> None:
                    rows.append(row)
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    print(line_of(row), flush=True)

                run_rounds(
                    contestants, task, work=work, rounds=args.rounds, keep=keep, idle_timeout_s=args.idle_timeout
                )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report(rows, task))
    return 1 if any(row["kind"] == "run" and row["exit_code"] != 0 for row in rows) else 0


def line_of(row: Row) -> str:
    """A row as it is shown while the benchmark runs."""
    shown = {key: value for key, value in row.items() if key not in ("kind", "contestant", "round", "system")}
    return f"{row['round']} {row.get('contestant', 'machine'):<22}{row['kind']:<8}{json.dumps(shown)}"


def report(rows: list[Row], task: Task) -> str:
    """Tables of speed and of goals, with what is needed to judge them."""
    figures = summarize(rows)
    goals = goals_of(figures, task, BloomConfig.preset(PRESET))
    rounds = len({row["round"] for row in rows})
    failed = sorted({row["contestant"] for row in rows if row["kind"] == "run" and row["exit_code"] != 0})
    busy = sorted({row["contestant"] for row in rows if row["kind"] == "run" and not row["idle_before"]})
    lines = [
        f"\nbloom-{PRESET}, random weights, {task.threads} threads, greedy; prompt {task.prompt_tokens}, "
        f"{task.new_tokens} new; prefill of {task.prefill_tokens}. {cpu_name()}. "
        f"Medians of {rounds} rounds (least–greatest), a fresh process each.",
        *(
            f"{name}: {figures['', key]}"
            for name, key in (
                ("read GB/s", "read_gb_s"),
                ("bf16 GEMM GFLOP/s", "bf16_gflops"),
                ("fp32 GEMM GFLOP/s", "fp32_gflops"),
            )
            if ("", key) in figures
        ),
        "",
        speed_table(figures, task.batches),
        "",
        goal_table(goals),
        f"{sum(goal.reached for goal in goals)} of {len(goals)} goals reached.",
    ]
    if busy:
        lines.append(f"The machine was NOT IDLE before: {', '.join(busy)}; run again.")
    if failed:
        lines.append(f"FAILED: {', '.join(failed)}; the rows say why.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
