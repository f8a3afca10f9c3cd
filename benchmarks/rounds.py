"""Each contestant once a round, a fresh process each time, one at a time: drift of the machine hits all alike."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.contestants import Contestant
from benchmarks.machine import CpuTime, measure_apart, wait_until_idle
from benchmarks.protocol import ROW, Task
from services.common.settings import ROOT

Row = dict[str, Any]
IDLE_TIMEOUT_S = 60.0
LAST_LINES = 12  # of what a failed contestant wrote


def run_rounds(
    contestants: Sequence[Contestant],
    task: Task,
    *,
    work: Path,
    rounds: int,
    keep: Callable[[Row], None],
    idle_timeout_s: float = IDLE_TIMEOUT_S,
) -> None:
    """Hand every row to `keep` as it comes; a contestant that fails gives a row `run` with its exit code."""
    for number in range(rounds):
        wait_until_idle(idle_timeout_s)
        keep({"kind": "machine", "round": number} | measure_apart(task.threads))
        for contestant in contestants:
            for row in run_once(contestant, task, work=work, idle_timeout_s=idle_timeout_s):
                keep(row | {"contestant": contestant.name, "round": number})


def run_once(contestant: Contestant, task: Task, *, work: Path, idle_timeout_s: float) -> list[Row]:
    """Its rows, the last one `run`: how it ended, its CPU time and what others used meanwhile."""
    model = work / "models" / contestant.model
    task = replace(task, model=str(model), weights=contestant.weights)
    read_into_page_cache(model)
    idle = wait_until_idle(idle_timeout_s)
    env = os.environ | contestant.variables(task.threads)
    cpu, children, start = CpuTime.now(), os.times(), time.monotonic()
    with tempfile.TemporaryFile() as errors:
        try:
            done = subprocess.run(
                contestant.command(work, task),
                cwd=ROOT,
                env=env,
                stdout=subprocess.PIPE,
                stderr=errors,
                timeout=contestant.timeout_s,
            )
            code, output = done.returncode, done.stdout
        except subprocess.TimeoutExpired as error:
            code, output = -1, error.stdout or b""
        errors.seek(0)
        words = errors.read().decode(errors="replace")
    after, children_after = CpuTime.now(), os.times()
    own_s = children_after.children_user - children.children_user
    own_s += children_after.children_system - children.children_system
    run: Row = {
        "kind": "run",
        "exit_code": code,
        "seconds": round(time.monotonic() - start, 1),
        "idle_before": idle,
        "own_cpu_s": round(own_s, 1),
        "foreign_cpu_s": round(max(0.0, after.busy_s - cpu.busy_s - own_s), 1),
        "stolen_s": round(after.stolen_s - cpu.stolen_s, 2),
    }
    if code != 0:
        run["error"] = "\n".join(words.splitlines()[-LAST_LINES:])
    return [*rows_of(output.decode(errors="replace")), run]


def rows_of(output: str) -> list[Row]:
    return [json.loads(line.removeprefix(ROW)) for line in output.splitlines() if line.startswith(ROW)]


def read_into_page_cache(path: Path) -> None:
    """Raises FileNotFoundError, saying how models are made."""
    if not path.exists():
        raise FileNotFoundError(f"no model {path}; `python -m benchmarks.peers install` makes it")
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as content:
                while content.read(16 << 20):
                    pass
