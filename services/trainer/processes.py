"""No process of an attempt outlives it: children die with their parents, leftovers are found and killed.

Torch-free and, but for the standard library, import-free: die_with_parent.py style wrappers start in milliseconds.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

JOB_VARIABLE = "ANTHESIS_JOB_ID"
TOKEN_VARIABLE = "ANTHESIS_FENCING_TOKEN"
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel SIGKILL this process when its parent dies; end now if that has happened already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def start(command: Sequence[str], env: dict[str, str], log: Path, cwd: Path) -> "subprocess.Popen[bytes]":
    """Start a command that leads its own process group and dies with the calling thread.

    The command is executed by this file, which asks the kernel for that first: Popen's preexec_fn is unsafe beside
    gRPC's threads.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, __file__, str(os.getpid()), *command],
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL a started command and all of its process group, and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill_leftovers(job_id: str, older_than: int) -> list[int]:
    """SIGKILL this machine's processes of attempts of the job before fencing token `older_than`; return their pids.

    What a process belongs to is read from its environment, so a recycled pid is never hit.
    """
    killed = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        pid = int(entry.name)
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, PermissionError):
            handle = os.pidfd_open(pid)
            try:
                if _is_older_attempt(pid, job_id, older_than):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    select.select([handle], [], [], 10)  # readable once the process has ended
                    killed.append(pid)
            finally:
                os.close(handle)
    return killed


def environment_of(pid: int) -> dict[str, str]:
    """The variables that a process was started with. Raises OSError where it has ended, or is another user's."""
    entries = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def _is_older_attempt(pid: int, job_id: str, older_than: int) -> bool:
    variables = environment_of(pid)
    return variables.get(JOB_VARIABLE) == job_id and int(variables.get(TOKEN_VARIABLE, 0)) < older_than


def boot_clock() -> float:
    """Seconds since boot, the same in every process, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
