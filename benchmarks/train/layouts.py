"""What layouts cost beside one process: `python -m benchmarks.train.layouts [1x1x2 2x2x2 ...]`.

Every layout trains the same model on the same batch as a job would, one process per rank, the cores shared among them.
On one machine nothing is gained: what is lost is the layout's own, exchanges, the bubble and smaller products.
"""

import argparse
import dataclasses
import os
import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks.figures import short, table
from benchmarks.machine import cpu_name, wait_until_idle
from benchmarks.plan_memory import make_job
from bloom.config import BloomConfig
from bloom.layout import Layout
from services.common.settings import ROOT
from services.trainer.config import TrainConfig
from services.trainer.launch import deepspeed_command, environment, prepare_command
from services.trainer.progress import ProgressReader

MODEL = BloomConfig(hidden_size=512, n_layer=8, n_head=8, vocab_size=16_384)
BATCH = 16  # sequences of a step
CONFIG = TrainConfig(steps=5, sequence_length=256, micro_batch=2, learning_rate=1e-4, warmup_steps=1, precision="fp32")
ALONE = Layout()
LAYOUTS = ("2x1x1", "1x2x1", "1x1x2", "2x2x1", "2x1x2", "1x2x2", "2x2x2")


def config_of(layout: Layout) -> TrainConfig:
    return dataclasses.replace(CONFIG, layout=layout, gradient_accumulation=BATCH // (CONFIG.micro_batch * layout.dp))


def bubble(config: TrainConfig) -> float:
    """Share of a step in which a stage waits for others under 1F1B: (p - 1) / (m + p - 1)."""
    waiting = config.layout.pp - 1
    return waiting / (config.gradient_accumulation + waiting)


def step_seconds(layout: Layout) -> float:
    """The median step but the first. Raises RuntimeError with the log's end."""
    config = config_of(layout)
    env = environment("job", 1, layout)
    with tempfile.TemporaryDirectory(prefix="an-") as folder:
        job = make_job(Path(folder), config, MODEL)
        for command in (prepare_command(job.path), deepspeed_command(job.path, layout)):
            done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, start_new_session=True)
            if done.returncode:
                raise RuntimeError(f"{layout}: exit {done.returncode}: {done.stderr[-2000:]}")
        steps = ProgressReader(job.progress).read()[0]
    return median(after.time - before.time for before, after in pairwise(steps))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.train.layouts", description=__doc__.split("\n")[0])
    made.add_argument("layouts", nargs="*", default=LAYOUTS, help="TPxPPxDP, beside 1x1x1")
    made.add_argument("--rounds", type=int, default=1)
    return made


def main() -> None:
    arguments = parser().parse_args()
    layouts = [ALONE, *map(Layout.parse, arguments.layouts)]
    seconds: dict[Layout, list[float]] = {layout: [] for layout in layouts}
    for _ in range(arguments.rounds):
        for layout in layouts:
            wait_until_idle(60)
            seconds[layout].append(step_seconds(layout))
    alone = median(seconds[ALONE])
    lines = []
    for layout, times in seconds.items():
        tokens = BATCH * CONFIG.sequence_length / median(times)
        share = f"{bubble(config_of(layout)):.0%}"
        lines.append([str(layout), str(layout.num_ranks), short(tokens), f"{median(times) / alone - 1:+.0%}", share])
    print(f"{cpu_name()}; {len(os.sched_getaffinity(0))} threads shared among the ranks; {BATCH} x 256 tokens a step\n")
    print(table(["layout", "processes", "tokens/s", "longer than alone", "bubble"], lines))


if __name__ == "__main__":
    main()
