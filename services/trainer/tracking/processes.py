"""The worker's side: a process for each tracker, beside the ranks."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from services.common.settings import ROOT
from services.trainer.folder import JobFolder
from services.trainer.processes import kill_group, start
from services.trainer.tracking.configured import configured

POLL_S = 0.1
FINISH_S = 60.0  # in which trackers send the rest of a run that is done
STOP_S = 2.0  # and of one that goes on later


class Trackers:
    """`with Trackers(…) as trackers`: they end with the block. Of one that fails it is said, and no more."""

    def __init__(self, folder: JobFolder, fencing_token: int, env: dict[str, str], say: Callable[[str], None]) -> None:
        """env: of the ranks. say: makes an event of the job."""
        self._folder = folder
        self._over = folder.tracking_over(fencing_token)
        self._env = env
        self._say = say
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        for name in configured(self._env):
            command = [sys.executable, "-m", "services.trainer.tracking", name, str(self._folder.path)]
            self._running[name] = start(command, self._env, self._log(name), ROOT)
        return self

    def check(self) -> None:
        """Say which have ended, and why."""
        for name, process in list(self._running.items()):
            if process.poll() is None:
                continue
            kill_group(self._running.pop(name))  # what it started
            if process.returncode:
                why = self._log(name).read_text(errors="replace").strip().splitlines()[-1:]
                self._say(f"{name} is told no more of this attempt: {''.join(why)[:500]}; training goes on")

    def finish(self, keep: Callable[[], None]) -> None:
        """Wait for them to send the rest; `keep` is called meanwhile, and may raise."""
        self._wait(FINISH_S, keep)
        for name in self._running:
            self._say(f"{name} has not been told all of this job: it took over {FINISH_S:.0f} s at its end")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._wait(STOP_S)
        for process in self._running.values():
            kill_group(process)

    def _wait(self, at_most_s: float, keep: Callable[[], None] = lambda: None) -> None:
        with contextlib.suppress(OSError):  # a full disk: they are killed then
            self._over.touch()
        until = time.monotonic() + at_most_s
        while self._running and time.monotonic() < until:
            keep()
            self.check()
            time.sleep(POLL_S)

    def _log(self, name: str) -> Path:
        return self._folder.path / f"tracking-{name}.log"
