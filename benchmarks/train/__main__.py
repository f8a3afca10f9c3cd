"""Training steps beside Hugging Face's Trainer: `python -m benchmarks.train [--rounds 1] [--steps 4]`.

Every round measures the machine's GEMM peak, then each contestant once, in a process of its own. Exit code 2: a goal
was not reached.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.contestants import WORK
from benchmarks.figures import Row, short, table
from benchmarks.goals import Goal
from benchmarks.machine import cpu_name, measure_apart, wait_until_idle
from benchmarks.rounds import rows_of
from benchmarks.train.task import SHAPES, Task
from bloom.config import BloomConfig
from bloom.flops import head_flops, layer_flops
from services.common.settings import ROOT

TRAINER, ZERO, OURS = "Hugging Face Trainer", "Hugging Face + DeepSpeed ZeRO-1", "anthesis"
CONTESTANTS = (TRAINER, ZERO, OURS)
PRECISIONS = ("fp32", "bf16")
IDLE_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One contestant's rounds on one shape, in one precision."""

    tokens_per_s: float  # by the median step
    peak_bytes: int
    gemm_share: float  # of the machine's peak in that precision, as model FLOP/s
    num_steps: int


Results = dict[tuple[str, str, str], Result]  # (shape, precision, contestant)


def run_once(name: str, task: Task) -> list[Row]:
    """A contestant's rows. Raises RuntimeError with the end of what it wrote."""
    module = "ours" if name == OURS else "hugging_face"
    task = dataclasses.replace(task, deepspeed=name == ZERO)
    env = os.environ | {
        "OMP_NUM_THREADS": str(task.threads),
        "DS_ACCELERATOR": "cpu",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", f"benchmarks.train.{module}", task.to_json()]
    with tempfile.TemporaryFile("w+") as errors:
        done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=errors, text=True)
        if done.returncode:
            errors.seek(0)
            raise RuntimeError(f"{name}: exit {done.returncode}: {errors.read()[-2000:]}")
    return [
        row | {"contestant": name, "shape": task.shape, "precision": task.precision} for row in rows_of(done.stdout)
    ]


def model_flops(config: BloomConfig, sequence_length: int) -> float:
    """Of one training token: three times the forward pass, the head in full."""
    return 3 * (config.n_layer * layer_flops(config, sequence_length) + head_flops(config))


def summarize(rows: Iterable[Row], task: Task) -> Results:
    """task: for the sizes that all share."""
    rows = list(rows)
    machine = [row for row in rows if row["kind"] == "machine"]
    found: Results = {}
    for shape, precision, name in dict.fromkeys(
        (row["shape"], row["precision"], row["contestant"]) for row in rows if row["kind"] == "end"
    ):
        own = [
            row
            for row in rows
            if (row.get("shape"), row.get("precision"), row.get("contestant")) == (shape, precision, name)
        ]
        seconds = [row["seconds"] for row in own if row["kind"] == "step"]
        rate = task.tokens_per_step / median(seconds)
        peak = 1e9 * median(row[f"{precision}_gflops"] for row in machine)
        found[shape, precision, name] = Result(
            tokens_per_s=rate,
            peak_bytes=max(row["peak_bytes"] for row in own if row["kind"] == "end"),
            gemm_share=rate * model_flops(SHAPES[shape], task.sequence_length) / peak,
            num_steps=len(seconds),
        )
    return found


def goals_of(results: Results) -> Iterator[Goal]:
    """Those for which there are figures."""
    for (shape, precision, name), ours in results.items():
        peers = [found for (*where, peer), found in results.items() if peer != OURS and where == [shape, precision]]
        if name != OURS or not peers:
            continue
        fastest = max(peer.tokens_per_s for peer in peers)
        bound = 1.2 if precision == "bf16" else 1.0
        where = f"{shape} {precision}"
        yield Goal(text=f"{where}: tokens/s of the faster peer", value=ours.tokens_per_s / fastest, bound=bound)
        if shape == "250k":
            least = min(peer.peak_bytes for peer in peers)
            text = f"{where}: peak memory of the leaner peer"
            yield Goal(text=text, value=ours.peak_bytes / least, bound=0.6, at_most=True)
        else:
            yield Goal(text=f"{where}: of GEMM peak", value=100 * ours.gemm_share, bound=72, unit=" %")


def report(results: Results) -> str:
    header = ["shape", "precision", "", "tokens/s", "of GEMM peak", "peak memory, GB"]
    lines = [
        [shape, precision, name, short(one.tokens_per_s), f"{one.gemm_share:.0%}", short(one.peak_bytes / 1e9)]
        for (shape, precision, name), one in results.items()
    ]
    goals = [
        [
            goal.text,
            f"{goal.value:.2f}{goal.unit}",
            f"{goal.bound:g}{goal.unit}",
            "reached" if goal.reached else "MISSED",
        ]
        for goal in goals_of(results)
    ]
    return table(header, lines) + "\n\n" + table(["goal", "measured", "bound", ""], goals)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__.split("\n")[0])
    made.add_argument("contestants", nargs="*", help=f"words of names: {', '.join(CONTESTANTS)}")
    made.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="rows of the embedding")
    made.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    made.add_argument("--rounds", type=int, default=1)
    made.add_argument("--steps", type=int, default=4, help="that are clocked, behind one that is not")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--work", type=Path, default=WORK)
    return made


def measured(arguments: argparse.Namespace, tasks: Sequence[Task], names: Sequence[str]) -> Iterator[Row]:
    for number in range(arguments.rounds):
        wait_until_idle(IDLE_TIMEOUT_S)
        yield {"kind": "machine"} | measure_apart(arguments.threads)
        for task in tasks:
            for name in names:
                wait_until_idle(IDLE_TIMEOUT_S)
                for row in run_once(name, task):
                    yield row | {"round": number}


def main() -> int:
    arguments = parser().parse_args()
    tasks = [
        Task(shape=shape, precision=precision, steps=arguments.steps, threads=arguments.threads)
        for shape in arguments.shapes
        for precision in arguments.precision
    ]
    words = arguments.contestants
    names = [name for name in CONTESTANTS if not words or any(word in name for word in words)]
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = []
    with (arguments.work / "train.jsonl").open("a") as file:
        for row in measured(arguments, tasks, names):
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            print(json.dumps(row), file=sys.stderr, flush=True)
    results = summarize(rows, tasks[0])
    print(
        f"{cpu_name()}; {arguments.rounds} rounds of {arguments.steps} steps, {tasks[0].tokens_per_step} tokens each\n"
    )
    print(report(results))
    return 0 if all(goal.reached for goal in goals_of(results)) else 2


if __name__ == "__main__":
    sys.exit(main())
