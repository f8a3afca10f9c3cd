"""Slurm on this machine: two nodes, each with its own slurmd. For root.

with running_slurm(folder) as env:
    subprocess.run(["sbatch", …], env=os.environ | env)
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

NODES = ("an-node1", "an-node2")
FIRST_PORT = 16820  # of slurmctld; then one for each slurmd


@contextlib.contextmanager
def running_slurm(folder: Path) -> Iterator[dict[str, str]]:
    """The variables by which Slurm's commands find it. Skips the test where it is not installed."""
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch", "pdsh") if not shutil.which(name)]
    if missing or os.getuid() != 0:
        pytest.skip(f"Slurm needs root and {', '.join(missing)}: apt-get install slurm-wlm pdsh")
    env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    _write_configuration(folder)
    munge = {"key-file": "munge/key", "socket": "munge/socket", "pid-file": "munge/pid", "seed-file": "munge/seed"}
    munged = [
        "munged",
        "--foreground",
        "--force",
        f"--log-file={folder}/munge/log",
        *(f"--{k}={folder}/{v}" for k, v in munge.items()),
    ]
    with contextlib.ExitStack() as stack:
        _start(stack, munged, env, folder / "munged.log")
        _wait_for(lambda: (folder / "munge/socket").exists(), "munged")
        _start(stack, ["slurmctld", "-D", "-c"], env, folder / "slurmctld.log")
        for node in NODES:  # in a view of the files in which the nodes' names mean this machine
            script = f"mount --bind {folder}/hosts /etc/hosts && exec slurmd -D -N {node}"
            _start(stack, ["unshare", "--mount", "bash", "-c", script], env, folder / f"{node}.log")
        _wait_for(lambda: "idle" in _output(["sinfo", "-h", "-N", "-o", "%T", "-n", NODES[1]], env), "Slurm's nodes")
        stack.callback(_end_jobs, env)  # while slurmd is there to end their processes
        yield {"SLURM_CONF": env["SLURM_CONF"]}


def _write_configuration(folder: Path) -> None:
    (folder / "munge").mkdir(mode=0o700)
    (folder / "munge/key").write_bytes(os.urandom(128))
    (folder / "munge/key").chmod(0o600)
    (folder / "hosts").write_text(Path("/etc/hosts").read_text() + "".join(f"127.0.0.1 {node}\n" for node in NODES))
    for name in ("state", *NODES):
        (folder / name).mkdir()
    here = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(f"""
ClusterName=anthesis
SlurmctldHost={here}(127.0.0.1)
SlurmctldPort={FIRST_PORT}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName={NODES[0]} NodeHostname={here} NodeAddr=127.0.0.1 Port={FIRST_PORT + 1} CPUs=2
NodeName={NODES[1]} NodeHostname={here} NodeAddr=127.0.0.1 Port={FIRST_PORT + 2} CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
""")


def _start(stack: contextlib.ExitStack, command: list[str], env: dict[str, str], log: Path) -> None:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output)
    stack.callback(process.wait)
    stack.callback(process.kill)


def _end_jobs(env: dict[str, str]) -> None:
    subprocess.run(["scancel", "--signal=KILL", "--full", "--user=root"], env=env, check=False)


def _output(command: list[str], env: dict[str, str]) -> str:
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout


def _wait_for(condition, what: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s} s for {what}")
        time.sleep(0.1)
