"""Stands between DeepSpeed's launcher on a host and one rank: `python -m services.trainer.guard JOB_FOLDER TOKEN`.

Gives the rank the worker's environment, from a file, for a command line can be read by others. Ends it when the lease
is over, also where the rank is stopped and cannot look itself. When it ends badly, the other hosts' guards hear of it
and end theirs: NCCL would wait for many minutes.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from services.trainer.energy import EnergyMeter, HostEnergy, first_gpus
from services.trainer.folder import JobFolder
from services.trainer.launch import for_ranks
from services.trainer.lease_file import LOOK_EVERY_S, LeaseFile
from services.trainer.processes import die_with_parent
from services.trainer.watchdog import RANK_MODULE


def rank_environment(carried: dict[str, str], own: dict[str, str]) -> dict[str, str]:
    """own: what the host and the launcher have set, which stays as it is."""
    return carried | own | for_ranks(int(own["LOCAL_SIZE"]))


def watch(
    rank: "subprocess.Popen[bytes]", lease: LeaseFile, death: Path, look: Callable[[], None] = lambda: None
) -> int:
    """The rank's exit status; kills the group where the lease is over or another rank has ended badly."""
    while True:
        try:
            return rank.wait(LOOK_EVERY_S)
        except subprocess.TimeoutExpired:
            look()
            if lease.is_over() or death.exists():
                os.killpg(0, signal.SIGKILL)


def record(death: Path, rank: int, code: int) -> None:
    """Write down how the first rank ended badly: the others follow."""
    own = death.with_name(f"{death.name}.{rank}")
    own.write_text(json.dumps({"rank": rank, "code": code}))
    with contextlib.suppress(FileExistsError):
        os.link(own, death)
    own.unlink()


def main(job_folder: str, fencing_token: str) -> int:
    os.setpgid(0, 0)  # the rank's group, which the rank kills when its lease is over
    die_with_parent(os.getppid())
    folder, token = JobFolder(Path(job_folder)), int(fencing_token)
    env = rank_environment(json.loads(folder.environment(token).read_text()), dict(os.environ))
    rank = subprocess.Popen([sys.executable, "-u", "-m", RANK_MODULE, job_folder], env=env)
    lease, death = LeaseFile(folder.lease, token), folder.death(token)
    code = watch_and_measure(rank, lease, folder, token, env) if env["LOCAL_RANK"] == "0" else watch(rank, lease, death)
    if code:
        record(death, int(env["RANK"]), code)
    return code if code >= 0 else 256 + code  # as DeepSpeed's launcher passes it on


def watch_and_measure(
    rank: "subprocess.Popen[bytes]", lease: LeaseFile, folder: JobFolder, token: int, env: dict[str, str]
) -> int:
    """As the guard of a host's first rank does."""
    meter = EnergyMeter(env)
    written = HostEnergy(folder.energy(token, f"{socket.gethostname()}-{os.getpid()}"))
    with meter.running(first_gpus(int(env["LOCAL_SIZE"]))):
        code = watch(rank, lease, folder.death(token), lambda: written.write(meter.energy))
    written.write(meter.energy)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
