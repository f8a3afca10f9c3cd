"""Whether the ranks still make steps; and, from outside, what they were doing when they did not."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from services.trainer.processes import JOB_VARIABLE, environment_of
from services.trainer.progress import Progress

STEPS_KEPT = 20  # over which a step's usual time is taken
RANK_MODULE = "services.trainer.train"
MAX_STACK = 3000  # characters of one rank's
STATES = {"R": "running", "S": "waiting", "D": "waiting for a disk", "T": "stopped", "t": "traced", "Z": "dead"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long no step is nothing to worry about."""

    least_s: float = 300.0  # a checkpoint counts as no step
    factor: float = 20.0  # times the median of recent steps
    ends_s: float = 3600.0  # before the second step (loading, compiling, meeting the other ranks), behind the last

    @classmethod
    def from_env(cls) -> "Patience":
        """ANTHESIS_HANG_SECONDS is `least_s`."""
        return cls(least_s=float(os.environ.get("ANTHESIS_HANG_SECONDS") or cls().least_s))


class Watchdog:
    """Told of every step of an attempt, asked whether the next one is overdue.

    signs: files that rank 0 touches as it does what is no step, or has done one that it cannot write down.
    """

    def __init__(
        self, patience: Patience, signs: Sequence[Path] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._patience = patience
        self._signs = signs
        self._clock = clock
        self.start()

    def start(self) -> None:
        """The ranks are started now."""
        self._last = self._clock()
        self._touched = [_touched_at(sign) for sign in self._signs]
        self._ends: list[float] = []  # of recent steps, as the rank says
        self._is_done = False

    def saw(self, steps: Sequence[Progress]) -> None:
        if steps:
            self._last = self._clock()
            self._ends = [*self._ends, *(step.time for step in steps)][-STEPS_KEPT - 1 :]
            self._is_done = steps[-1].step == steps[-1].total_steps

    @property
    def has_steps(self) -> bool:
        """Whether the ranks have done a step since they were started."""
        return bool(self._ends)

    def overdue(self) -> str:
        """Why the ranks are taken to hang; "" while they are not."""
        before, self._touched = self._touched, [_touched_at(sign) for sign in self._signs]
        if self._touched != before:
            self._last = self._clock()
        silent_s = self._clock() - self._last
        if len(self._ends) < 2 or self._is_done:
            return f"nothing done for {silent_s:.0f} s" if silent_s > self._patience.ends_s else ""
        usual_s = median(end - begin for begin, end in zip(self._ends, self._ends[1:], strict=False))
        if silent_s <= max(self._patience.least_s, self._patience.factor * usual_s):
            return ""
        return f"no step for {silent_s:.0f} s, where one takes {usual_s:.2g} s"


def _touched_at(path: Path) -> int:
    """Nanoseconds, by the clock of who keeps the file; 0 where there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def stacks(job_id: str) -> str:
    """Each rank of the job on this machine, whether it runs, and where its threads are.

    Looked at by py-spy without stopping it: a stopped process would not answer.
    """
    return "\n".join(_stack(pid) for pid in sorted(_ranks(job_id)))


def _ranks(job_id: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and environment_of(int(entry.name)).get(JOB_VARIABLE) == job_id:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                if RANK_MODULE.encode() in command and b"deepspeed.launcher.launch" not in command:
                    found.append(int(entry.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def _stack(pid: int) -> str:
    try:
        rank = environment_of(pid).get("RANK", "?")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError as error:
        return f"process {pid}: {error}"
    command = [str(Path(sys.executable).with_name("py-spy")), "dump", "--nonblocking", "--pid", str(pid)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        said = result.stdout or result.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    return f"rank {rank} on {socket.gethostname()}, process {pid}, {STATES.get(state, state)}:\n{said[:MAX_STACK]}"
