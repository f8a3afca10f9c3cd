"""Our worker and our OpenAI endpoint under load: `python -m benchmarks.load mixed | prefix | openai`.

mixed   Poisson arrivals at a share of the measured capacity: time to the first token, and between tokens
prefix  requests that share their first 1,024 tokens, one after another
openai  vLLM's own load client against our endpoint and against vLLM's
"""

import argparse
import asyncio
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import openai_load
from benchmarks.contestants import WORK
from benchmarks.figures import short, table
from benchmarks.goals import Goal, goal_table
from benchmarks.protocol import PROMPT_IDS
from benchmarks.random_model import random_model
from benchmarks.worker import WorkerProcess, running_worker
from benchmarks.workload import (
    Lengths,
    Request,
    Stream,
    arrival_times,
    capacity,
    open_loop,
    percentile,
    requests,
    stream,
)
from bloom.config import BloomConfig

LOAD = 0.7  # of the capacity
TAIL_RATIO = 3.0
PREFIX_SHARE = 10.0  # % of the first's time
PREFIX, SUFFIX, REQUESTS = 1024, 16, 32
STREAMS = 32


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description="Our server under load.")
    commands = parser.add_subparsers(dest="command", required=True)
    mixed = commands.add_parser("mixed", help="Poisson arrivals of mixed lengths")
    mixed.add_argument("--seconds", type=float, default=300.0, help="of arrivals (%(default)s)")
    mixed.add_argument("--capacity-seconds", type=float, default=120.0, help="to measure the capacity (%(default)s)")
    prefix = commands.add_parser("prefix", help="a shared prefix of 1,024 tokens")
    for command in (mixed, prefix):
        command.add_argument("--weights", default="bfloat16", choices=("float32", "bfloat16", "int8", "int8_dynamic"))
        command.add_argument("--threads", type=int, default=2)
    openai = commands.add_parser("openai", help="vllm bench serve")
    openai_load.add_arguments(openai)
    for command in (mixed, prefix, openai):
        command.add_argument("--work", type=Path, default=WORK, help="models and logs (%(default)s)")
        command.add_argument("--preset", default="560m")
    return parser


def engine_settings(weights: str, threads: int) -> dict[str, Any]:
    """EngineConfig's fields: the product's defaults but for the number format."""
    values: dict[str, Any] = {"threads": threads}
    return values | ({"weights": weights} if weights.startswith("int8") else {"dtype": weights})


async def mixed(worker: WorkerProcess, args: argparse.Namespace, vocab: int) -> list[Goal]:
    lengths = Lengths()
    given = requests(lengths, vocab=vocab, seed=1)
    most = await capacity(worker, given, streams=STREAMS, duration_s=args.capacity_seconds)
    await worker.wait_until_free(30)
    rate = LOAD * most / lengths.mean_output
    print(f"capacity {most:.1f} tokens/s with {STREAMS} streams; offering {rate:.3f} requests/s for {args.seconds:g} s")
    times = arrival_times(rate, args.seconds, seed=2)
    streams = await open_loop(worker, given, times)
    print(load_table(streams))
    gaps = [gap for one in streams for gap in one.gaps_s]
    ratio = percentile(gaps, 99) / percentile(gaps, 50)
    return [
        Goal(text="mixed load: p99 time between tokens against the median", value=ratio, bound=TAIL_RATIO, at_most=True)
    ]


def load_table(streams: list[Stream]) -> str:
    """Milliseconds."""
    quantities = {
        "first token": [one.first_s for one in streams],
        "between tokens": [gap for one in streams for gap in one.gaps_s],
    }
    lines = [
        [name, str(len(values)), *(short(1e3 * percentile(values, percent)) for percent in (50, 90, 99, 100))]
        for name, values in quantities.items()
    ]
    return table(["ms", "number", "p50", "p90", "p99", "greatest"], lines)


async def prefix(worker: WorkerProcess, args: argparse.Namespace, vocab: int) -> list[Goal]:
    draw = random.Random(3)

    def ids(count: int) -> list[int]:
        return [draw.randrange(PROMPT_IDS[0], min(PROMPT_IDS[1], vocab)) for _ in range(count)]

    await stream(worker, Request(ids(PREFIX + SUFFIX), 2))  # memory touched, shapes seen
    shared = ids(PREFIX)
    times = [(await stream(worker, Request(shared + ids(SUFFIX), 2))).first_s for _ in range(REQUESTS)]
    first, later = times[0], times[1:]
    print(
        f"{REQUESTS} requests, {PREFIX} shared tokens and {SUFFIX} of their own; time to the first token in ms: the "
        f"first {short(1e3 * first)}; later ones median {short(1e3 * percentile(later, 50))}, "
        f"greatest {short(1e3 * max(later))}"
    )
    share = 100 * percentile(later, 50) / first
    text = "shared prefix: first token of the later ones (median) against the first"
    return [Goal(text=text, value=share, bound=PREFIX_SHARE, unit=" %", at_most=True)]


async def with_worker(args: argparse.Namespace) -> list[Goal]:
    config = BloomConfig.preset(args.preset)
    stored = "float32" if args.weights == "float32" else "bfloat16"
    work = args.work.resolve()
    model = random_model(work / "models" / f"{args.preset}-{stored}", config, weights=stored)
    measure = mixed if args.command == "mixed" else prefix
    settings = engine_settings(args.weights, args.threads)
    async with running_worker(model, settings, log=work / f"load-{args.command}.log") as worker:
        return await measure(worker, args, config.vocab_size)


def main() -> int:
    args = parser().parse_args()
    try:
        goals = openai_load.run(args) if args.command == "openai" else asyncio.run(with_worker(args))
    except (OSError, RuntimeError, ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(goal_table(goals))
    return 0 if all(goal.reached for goal in goals) else 2


if __name__ == "__main__":
    sys.exit(main())
