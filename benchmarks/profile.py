"""Where a decode step's time goes, beside what the machine needs at the least: `python -m benchmarks.profile`.

Clocks around the parts of a step in this process, in turns with the same batch by gRPC through a worker process, for
what Python and RPC add; then each stage of the CPU operators by itself, and Python's profiler.
"""

import argparse
import asyncio
import cProfile
import pstats
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import machine, shapes
from benchmarks.contestants import WORK
from benchmarks.figures import Figure, short, table
from benchmarks.goals import Goal, goal_table
from benchmarks.ours import Driver, open_engine, settings
from benchmarks.protocol import Prompts, Task, prompts
from benchmarks.random_model import random_model
from benchmarks.worker import WorkerProcess, running_worker
from benchmarks.workload import Request, Stream, stream
from bloom.config import BloomConfig
from services.inference import results

OVERHEAD_SHARE = 5.0  # % of a step
SPARE_STEPS = 32  # before all sequences decode, and after the passes
WHOLE_PROMPTS = {"max_step_ms": 60_000.0}  # streams begin close together, whatever the first steps take
MOST_FUNCTIONS = 12
COMPUTED = ("forward", "logits", "sampling")
Parts = dict[str, float]  # of a step, milliseconds


class Clock:
    """Seconds spent in what was wrapped, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return call

    def take(self, num_steps: int) -> dict[str, float]:
        """Milliseconds of one step; starts anew."""
        milliseconds = {name: 1e3 * seconds / num_steps for name, seconds in self.seconds.items()}
        self.seconds.clear()
        return milliseconds


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description="A decode step by its parts.")
    parser.add_argument("--weights", default="bfloat16", choices=tuple(shapes.WEIGHT_BYTES))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40, help="timed in each round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="here and in the worker, in turns (%(default)s)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preset", default="560m")
    parser.add_argument("--no-worker", action="store_true", help="in this process alone")
    parser.add_argument("--work", type=Path, default=WORK, help="models and logs (%(default)s)")
    return parser


def run(args: argparse.Namespace) -> list[Goal]:
    config = BloomConfig.preset(args.preset)
    stored = "float32" if args.weights == "float32" else "bfloat16"
    model = random_model(args.work / "models" / f"{args.preset}-{stored}", config, weights=stored)
    task = Task(
        model=str(model),
        weights=args.weights,
        threads=args.threads,
        prompt_tokens=args.prompt,
        new_tokens=args.steps + SPARE_STEPS,
        batches=(args.batch,),
        prefill_tokens=args.prompt,
    )
    goals: list[Goal] = []
    limits = machine.measure_apart(args.threads)
    engine = ProfiledEngine(task, args.batch, args.steps)
    if args.no_worker:
        rounds = [engine.parts() for _ in range(args.rounds)]
    else:
        rounds, goals = asyncio.run(beside_worker(engine, args))
    context = task.prompt_tokens + args.steps // 2
    parts = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    print(part_table(parts, minimum_ms(config, task, args.batch, context, limits)))
    if stages := engine.stages():
        print(f"\nStages of forward, each in a call of its own\n{part_table(stages, {})}")
    print(f"\nFunctions by their own time, under Python's profiler\n{engine.functions()}\n")
    engine.close()
    return goals


async def beside_worker(
    engine: "ProfiledEngine", args: argparse.Namespace
) -> tuple[list[dict[str, float]], list[Goal]]:
    """The same batch here and by gRPC, in turns: what computing takes here is set against the step there."""
    task = engine.task
    changed = settings(task) | WHOLE_PROMPTS
    rounds, steps_ms = [], []
    async with running_worker(Path(task.model), changed, log=args.work / "profile.log") as worker:
        await through_worker(worker, engine.prompts, 4)
        for _ in range(args.rounds):
            rounds.append(engine.parts())
            steps_ms.append(step_ms(await through_worker(worker, engine.prompts, task.new_tokens)))
    computed_ms = [sum(parts[name] for name in COMPUTED) for parts in rounds]
    shares = [100 * (step - computed) / step for step, computed in zip(steps_ms, computed_ms, strict=True)]
    print(
        f"By gRPC through a worker, {args.batch} streams: {Figure.of(steps_ms)} ms a step; "
        f"forward, logits and sampling here: {Figure.of(computed_ms)} ms\n"
    )
    text = f"anthesis {args.weights}: Python and RPC of a step at batch {args.batch}"
    value = statistics.median(shares)
    return rounds, [Goal(text=text, value=value, bound=OVERHEAD_SHARE, unit=" %", at_most=True)]


class ProfiledEngine:
    """An engine in this process with clocks around the parts of its step."""

    def __init__(self, task: Task, batch: int, num_steps: int) -> None:
        self.task = task
        self.prompts = prompts(batch, task.prompt_tokens)
        self._num_steps = num_steps
        self._engine, _ = open_engine(task, **WHOLE_PROMPTS)
        self._executor = self._engine._executor
        self._driver = Driver(self._engine)
        self._clock = clock = Clock()
        self._executor.forward = clock.timed("forward", self._executor.forward)
        self._executor.logits = clock.timed("logits", self._executor.logits)
        vars(results)["sample"] = clock.timed("sampling", vars(results)["sample"])
        self.parts()  # memory touched, shapes seen

    def close(self) -> None:
        self._engine.close()

    def parts(self) -> Parts:
        """Milliseconds of each part of a decode step."""
        with self._decoding():
            start = time.perf_counter()
            for _ in range(self._num_steps):
                self._driver.step()
            whole_ms = 1e3 * (time.perf_counter() - start) / self._num_steps
            parts = self._clock.take(self._num_steps)
        return parts | {"scheduling, events, encoding": whole_ms - sum(parts.values())}

    def stages(self) -> Parts:
        """Milliseconds of a step by kind of stage; nothing for executors that have no stages."""
        model: Any = getattr(self._executor, "_model", None)
        if not hasattr(model, "_segments"):
            return {}
        seconds: dict[str, float] = defaultdict(float)

        def one_by_one(begin: int, end: int) -> Iterator[tuple[int, int, str]]:
            for stage in range(begin, end + 1):
                start = time.perf_counter()
                yield stage, stage, ""
                seconds[stage_name(stage, model._final_stage)] += time.perf_counter() - start

        with self._decoding():
            model._segments = one_by_one
            for _ in range(self._num_steps):
                self._driver.step()
            del model._segments
        return {name: 1e3 * value / self._num_steps for name, value in seconds.items()}

    def functions(self) -> str:
        """A table of those with the most time of their own."""
        profiler = cProfile.Profile()
        with self._decoding():
            profiler.enable()
            for _ in range(self._num_steps):
                self._driver.step()
            profiler.disable()
        return function_table(profiler, self._num_steps)

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        """Every sequence has drawn a token, and the clocks are at zero; at the end all are let end."""
        self._driver.submit(self.prompts, self.task.new_tokens)
        drive_until_decoding(self._driver, len(self.prompts))
        self._clock.seconds.clear()
        yield
        while self._engine.has_work:
            self._driver.step()


def drive_until_decoding(driver: Driver, batch: int) -> None:
    """Step until every sequence has drawn a token."""
    started: set[int] = set()
    while len(started) < batch:
        started |= {event.request_id for event in driver.step()}


def minimum_ms(config: BloomConfig, task: Task, batch: int, context: int, limits: dict[str, float]) -> Parts:
    """What the machine needs for the bytes that must be read or the operations, whichever takes longer.

    The operations of int8 are set against the bf16 peak, or fp32's where the processor has no products of bf16. int8
    instructions may exceed it.
    """
    head_bytes = shapes.WEIGHT_BYTES[task.weights] * config.vocab_size * config.hidden_size
    head_flops = 2 * batch * config.vocab_size * config.hidden_size
    kv_bytes = 4 if task.weights == "float32" else 2
    whole_bytes = shapes.decode_bytes(config, weights=task.weights, batch=batch, context=context, kv_bytes=kv_bytes)
    whole_flops = shapes.decode_flops(config, batch=batch, context=context)
    peak = limits["fp32_gflops"] if task.weights == "float32" else max(limits["bf16_gflops"], limits["fp32_gflops"])

    def limit(num_bytes: float, flops: float) -> float:
        return max(num_bytes / limits["read_gb_s"], flops / peak) / 1e6

    return {
        "forward": limit(whole_bytes - head_bytes, whole_flops - head_flops),
        "logits": limit(head_bytes, head_flops),
        "sampling": limit(4 * batch * config.vocab_size, 0),
    }


def part_table(parts: Parts, limits: Parts) -> str:
    whole = sum(parts.values())
    lines = [
        [name, f"{value:.3f}", f"{100 * value / whole:.1f} %", f"{limits[name]:.3f}" if name in limits else "–"]
        for name, value in parts.items()
    ]
    lines.append(["step", f"{whole:.3f}", "100 %", f"{sum(limits.values()):.3f}" if limits else "–"])
    return table(["part", "ms", "share", "machine's limit, ms"], lines)


def stage_name(stage: int, final: int) -> str:
    """As numbered in bloom/cpu/src/step.cpp: embedding, its norm, four of each layer, the last norm."""
    if stage < 2:
        return "embedding and norm"
    if stage == final:
        return "final norm"
    return "norm, qkv, attention, dense" if (stage - 2) % 4 < 2 else "norm, MLP"


def function_table(profiler: cProfile.Profile, num_steps: int) -> str:
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    most = sorted(stats.items(), key=lambda item: -item[1][2])[:MOST_FUNCTIONS]
    lines = [
        [_function_name(key), short(calls / num_steps), f"{1e3 * own / num_steps:.3f}", f"{1e3 * all_ / num_steps:.3f}"]
        for key, (_, calls, own, all_, _) in most
    ]
    return table(["function", "calls a step", "own ms", "with callees"], lines)


def _function_name(key: tuple[str, int, str]) -> str:
    file, line, name = key
    return name if file == "~" else f"{Path(file).name}:{line} {name}"


async def through_worker(worker: WorkerProcess, given: Prompts, count: int) -> list[Stream]:
    """All prompts at once, each a stream."""
    return list(await asyncio.gather(*(stream(worker, Request(prompt, count)) for prompt in given)))


def step_ms(streams: list[Stream]) -> float:
    """Between the last stream's first token and the first stream's end a step gives each one token."""
    begin = max(one.first_s for one in streams)
    end = min(one.arrivals[-1] for one in streams)
    tokens = sum(begin < arrival <= end for one in streams for arrival in one.arrivals)
    if tokens == 0:
        raise RuntimeError("a stream ended before the last one began; use more --steps")
    return 1e3 * (end - begin) * len(streams) / tokens


def main() -> int:
    args = parser().parse_args()
    args.work = args.work.resolve()
    try:
        goals = run(args)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if goals:
        print(goal_table(goals))
    return 0 if all(goal.reached for goal in goals) else 2


if __name__ == "__main__":
    sys.exit(main())
