"""bloom-7b1 in int8 on this machine: `python -m benchmarks.seven_billion`. Load time, peak memory, tokens/s.

Random weights, stored in int8 (7 GB on disk), read by the engine as any quantized checkpoint.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.contestants import WORK, Contestant
from benchmarks.figures import Row, short, summarize, table
from benchmarks.machine import cpu_name
from benchmarks.protocol import Task
from benchmarks.random_model import random_model
from benchmarks.rounds import run_once
from benchmarks.serve import line_of
from bloom.config import BloomConfig
from services.inference.engine_client import SPIN_COUNT


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seven_billion", description="bloom-7b1 in int8.")
    parser.add_argument("--preset", default="7b1")
    parser.add_argument("--weights", default="int8", choices=("int8", "int8_dynamic"))
    parser.add_argument("--rounds", type=int, default=3, help="processes, one after another (%(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prefill", type=int, default=512, help="tokens (%(default)s)")
    parser.add_argument("--new", type=int, default=32, help="tokens drawn for each (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=WORK, help="the model's place, with 8 GB of room (%(default)s)")
    return parser


def report(rows: list[Row], task: Task, preset: str) -> str:
    figures = {quantity: figure for (_, quantity), figure in summarize(rows).items()}
    lines = [
        ["process start to loaded, s", str(figures["load_s"])],
        ["process start to first token, s", str(figures["first_token_s"])],
        ["weights and cache, GiB", short((figures["weight_bytes"].median + figures["cache_bytes"].median) / 2**30)],
        ["resident, GiB", short(figures["resident_bytes"].median / 2**30)],
        ["peak, GiB", short(figures["peak_bytes"].greatest / 2**30)],
        [f"prefill of {task.prefill_tokens}, tok/s", str(figures["prefill"])],
        *([f"decode, batch {batch}, tok/s", str(figures[f"decode {batch}"])] for batch in task.batches),
    ]
    return f"\nbloom-{preset}, {task.weights}, {cpu_name()}\n{table(['quantity', 'median (least–greatest)'], lines)}"


def main() -> int:
    args = parser().parse_args()
    work = args.work.resolve()
    model = f"{args.preset}-int8"
    random_model(work / "models" / model, BloomConfig.preset(args.preset), weights="int8")
    contestant = Contestant(
        name=f"anthesis {args.weights}",
        module="ours",
        weights=args.weights,
        model=model,
        env={"GOMP_SPINCOUNT": SPIN_COUNT},
        timeout_s=3600.0,
    )
    task = Task(
        model="",
        weights=args.weights,
        threads=args.threads,
        batches=tuple(args.batches),
        new_tokens=args.new,
        prefill_tokens=args.prefill,
    )
    rows: list[Row] = []
    for number in range(args.rounds):
        for row in run_once(contestant, replace(task), work=work, idle_timeout_s=60.0):
            rows.append(row | {"round": number, "contestant": contestant.name})
            print(line_of(rows[-1]), flush=True)
    if failed := [row for row in rows if row["kind"] == "run" and row["exit_code"] != 0]:
        print(f"error: {json.dumps(failed[0])}", file=sys.stderr)
        return 1
    print(report(rows, task, args.preset))
    return 0


if __name__ == "__main__":
    sys.exit(main())
