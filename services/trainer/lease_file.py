"""The lease as the processes of an attempt see it: a file in the job's folder, which hosts may share.

The clocks of two hosts are not compared. The file says how long the lease holds from when the file was written; a
reader counts that from its last look at the file before, which did not find it yet.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from services.trainer.files import write_whole
from services.trainer.processes import boot_clock

LOOK_EVERY_S = 0.5
UNSEEN_S = 10.0  # for which a process goes on that has not found its lease yet


def write_lease(lease: Path, token: int, left_s: float) -> None:
    """Let the processes of the attempt with fencing token `token` run for so long from now; 0: no longer."""
    text = f"{token} {left_s:016.6f} {time.time_ns()}"  # of one length: it can be written over the last
    try:
        write_whole(lease, text)
    except OSError:  # a full disk, which must not end the lease: what is there already has its room
        with lease.open("r+") as file:
            file.write(text)


class LeaseFile:
    """A process's view of its attempt's lease."""

    def __init__(self, path: Path, token: int, clock: Callable[[], float] = boot_clock) -> None:
        self._path = path
        self._token = token
        self._clock = clock
        self._looked = clock()
        self._until = self._looked + UNSEEN_S
        self._seen = ""

    def is_over(self) -> bool:
        """Look: whether the lease has run out, or was ended, or a later attempt has one."""
        now = self._clock()
        token, text, left_s = self._read()
        found_after, self._looked = self._looked, now
        if token == self._token and text != self._seen:
            # Renewed since the last look, however long ago that was: a process may have been stopped in between.
            self._seen, self._until = text, found_after + left_s
            return left_s <= 0
        return token > self._token or now > self._until

    def _read(self) -> tuple[int, str, float]:
        """Token, the whole text and the seconds in it; a lease that cannot be read is no news."""
        try:
            text = self._path.read_text()
            token, left_s, _ = text.split()
            return int(token), text, float(left_s)
        except (OSError, ValueError):
            return -1, "", 0.0


def token_of(lease: Path) -> int:
    """The fencing token of the attempt that has the lease. Raises OSError where there is no such file."""
    return int(lease.read_text().split()[0])


def end_with_lease(lease: Path, token: int) -> None:
    """Kill this process's group once the attempt's lease is over: its worker hangs, was stopped, or cannot be seen."""
    file = LeaseFile(lease, token)

    def watch() -> None:
        while not file.is_over():
            time.sleep(LOOK_EVERY_S)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="lease", daemon=True).start()
