"""The hosts that an attempt's ranks run on, where the worker has a hostfile: all of them share the data folder.

The job's folder remembers on which of them ranks died, so that they are taken last.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from services.common.settings import ROOT
from services.trainer.files import write_whole
from services.trainer.folder import JobFolder

HOSTFILE_VARIABLE = "ANTHESIS_HOSTFILE"  # at the worker: DeepSpeed's hostfile, lines of "NAME slots=8"
# Nobody is there to type a password; a host that is gone ends its ssh.
SSH_OPTIONS = "-o BatchMode=yes -o ServerAliveInterval=10 -o ServerAliveCountMax=3"
SSH_VARIABLE = "PDSH_SSH_ARGS_APPEND"  # pdsh's own: what the operator adds, a port or a key
STACKS_WITHIN_S = 10  # a lease waits while they are asked for


@dataclass(frozen=True, slots=True)
class Host:
    name: str  # by which the others reach it
    slots: int  # ranks that it has room for
    free_port: int  # for rank 0, when it was asked


@dataclass(frozen=True, slots=True)
class Hosts:
    """Those that are ready for the attempt, the best first."""

    ready: tuple[Host, ...]
    left_out: dict[str, str]  # name -> why it is not ready

    @property
    def room(self) -> tuple[int, str]:
        """How many ranks there is room for, which `launch.fitted` takes, and why no more."""
        num_slots = sum(host.slots for host in self.ready)
        return num_slots, "; ".join([f"the hosts that are ready have {num_slots} slots", *self._left_out()])

    def __str__(self) -> str:
        return "; ".join(["hosts " + ", ".join(host.name for host in self.ready), *self._left_out()])

    def _left_out(self) -> list[str]:
        return [f"{name} is left out: {why}" for name, why in self.left_out.items()]

    def taken(self, num_ranks: int) -> "Hosts":
        """The first with as many slots as there are ranks; the last of them gives only as many as are needed."""
        taken: list[Host] = []
        for host in self.ready:
            missing = num_ranks - sum(other.slots for other in taken)
            if missing > 0:
                taken.append(replace(host, slots=min(host.slots, missing)))
        return replace(self, ready=tuple(taken))

    def of_rank(self, rank: int) -> str:
        """The name of the host that DeepSpeed's launcher starts the rank on, where all hosts are taken."""
        return [host.name for host in self.ready for _ in range(host.slots)][rank]

    def save(self, path: Path) -> None:
        write_whole(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "Hosts":
        fields = json.loads(path.read_text())
        return cls(tuple(Host(**host) for host in fields["ready"]), fields["left_out"])


def find_command(folder: JobFolder, hostfile: str) -> list[str]:
    """Leaves a Hosts in the job's folder."""
    return [sys.executable, "-m", "services.trainer.find_hosts", str(folder.path), hostfile]


def runner_command(hosts: Hosts, folder: JobFolder, token: int) -> list[str]:
    """DeepSpeed's runner, which starts its launcher on every host, all taken; around each rank is a guard.

    Every host is reached by ssh, this one too: the worker's machine need not be among them.
    """
    folder.hostfile.write_text("".join(f"{host.name} slots={host.slots}\n" for host in hosts.ready))
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", f"--hostfile={folder.hostfile}", "--launcher=pdsh"]
    address = [f"--master_addr={hosts.ready[0].name}", f"--master_port={hosts.ready[0].free_port}"]
    options = ["--force_multi", "--no_ssh_check", "--no_local_rank", "--log_level=warning"]
    return [*runner, *address, *options, "--module", "services.trainer.guard", str(folder.path), str(token)]


def runner_environment(env: Mapping[str, str]) -> dict[str, str]:
    """What pdsh and ssh need. DeepSpeed puts variables of MLflow on command lines, which all users of a host can read:
    ranks find them in a file.
    """
    kept = {name: value for name, value in env.items() if not name.startswith("MLFLOW")}
    return kept | {SSH_VARIABLE: f"{env.get(SSH_VARIABLE, '')} {SSH_OPTIONS}".strip()}


@contextlib.contextmanager
def written_environment(folder: JobFolder, token: int, env: dict[str, str]) -> Iterator[None]:
    """The variables that the guards give their ranks, readable by this user alone; gone with the attempt."""
    for left in folder.path.glob("environment-*.json"):  # by a worker that was killed
        left.unlink()
    path = folder.environment(token)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(env, file)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def ask(names: Sequence[str], arguments: Sequence[str], timeout_s: int) -> "subprocess.CompletedProcess[str]":
    """`python -m services.trainer.on_host` with the arguments, on all the hosts at once; lines begin with the host."""
    there = shlex.join([sys.executable, "-m", "services.trainer.on_host", *arguments])
    # 1024: at once, as DeepSpeed's runner has it
    pdsh = ["pdsh", "-R", "ssh", "-f", "1024", "-t", str(timeout_s), "-u", str(timeout_s), "-w", ",".join(names)]
    return subprocess.run(
        [*pdsh, f"cd {shlex.quote(str(ROOT))} && {there}"],
        env=runner_environment(os.environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def stacks_on(hosts: Hosts, folder: JobFolder, job_id: str) -> str:
    """What the ranks of all hosts are doing; hosts with a rank that is stopped or dead are remembered."""
    answer = ask([host.name for host in hosts.ready], ["stacks", job_id], STACKS_WITHIN_S)
    for line in answer.stdout.splitlines():
        name, _, said = line.partition(": ")
        if said.startswith("rank ") and said.endswith((", stopped:", ", traced:", ", dead:")):
            remember_death(folder, name)
    return answer.stdout + answer.stderr


def how_it_died(hosts: Hosts, folder: JobFolder, token: int) -> str:
    """Which rank ended badly first, as its guard saw it; its host is remembered where it was killed. "": none did."""
    path = folder.death(token)
    if not path.exists():
        return ""
    death = json.loads(path.read_text())
    name, code = hosts.of_rank(death["rank"]), death["code"]
    if code < 0:
        remember_death(folder, name)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"rank {death['rank']} on {name} {how}"


def remember_death(folder: JobFolder, name: str) -> None:
    deaths = deaths_on_hosts(folder)
    write_whole(folder.host_deaths, json.dumps(deaths | {name: deaths.get(name, 0) + 1}))


def deaths_on_hosts(folder: JobFolder) -> dict[str, int]:
    """Ranks of the job that died, by the host they ran on."""
    return dict(json.loads(folder.host_deaths.read_text())) if folder.host_deaths.exists() else {}
