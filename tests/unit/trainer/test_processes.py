"""Nothing outlives its attempt."""

import os
import signal
import subprocess
import sys
import textwrap
import time

from services.common.settings import ROOT
from services.trainer.processes import kill_group, kill_leftovers, start

SLEEP = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]


def wait_until_gone(pid: int, timeout_s: float = 20) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def wait_for_line(path, timeout_s: float = 20) -> str:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().endswith("\n"):
            return path.read_text()
        time.sleep(0.02)
    raise TimeoutError(path)


def test_a_started_process_dies_with_its_parent(tmp_path):
    log = tmp_path / "log"
    parent = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from services.trainer.processes import start
        print(start({SLEEP!r}, {{}}, Path({str(log)!r}), Path("/")).pid, flush=True)
        time.sleep(600)
    """)
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    wait_for_line(log)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert wait_until_gone(child)
    process.stdout.close()


def test_killing_a_group_kills_grandchildren(tmp_path):
    log = tmp_path / "log"
    process = start(
        [sys.executable, "-c", f"import subprocess; subprocess.run({SLEEP!r})"], dict(os.environ), log, tmp_path
    )
    grandchild = int(wait_for_line(log))
    assert grandchild != process.pid
    kill_group(process)
    assert wait_until_gone(grandchild)


def test_only_older_attempts_of_the_same_job_are_killed(tmp_path):
    def sleeper(job: str, token: int):
        env = {**os.environ, "ANTHESIS_JOB_ID": job, "ANTHESIS_FENCING_TOKEN": str(token)}
        return start(SLEEP, env, tmp_path / f"{job}-{token}", tmp_path)

    mine = f"job-{os.getpid()}"
    old, new, other = sleeper(mine, 1), sleeper(mine, 2), sleeper(mine + "x", 1)
    try:
        assert kill_leftovers(mine, older_than=2) == [old.pid]
        assert old.wait(10) == -signal.SIGKILL
        assert new.poll() is None
        assert other.poll() is None
    finally:
        for process in (old, new, other):
            kill_group(process)
