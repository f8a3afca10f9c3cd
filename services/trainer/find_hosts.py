"""Which hosts of the hostfile are ready: `python -m services.trainer.find_hosts JOB_FOLDER HOSTFILE`.

A process of its own, for it waits while a lease is kept, and DeepSpeed, which reads the hostfile, brings torch along.
"""

import os
import re
import shutil
import sys
import time
from pathlib import Path

from deepspeed.launcher.runner import fetch_hostfile

from services.trainer.config import RunSpec
from services.trainer.failure import JobFailure, recorded
from services.trainer.folder import JobFolder
from services.trainer.hosts import Host, Hosts, ask, deaths_on_hosts
from services.trainer.lease_file import end_with_lease

ANSWER_WITHIN_S = 20
ASK_AGAIN_S = 5.0
READY = re.compile(r"^(\S+): ready (\d+)$", re.MULTILINE)
REMEDY = "name a file with a line 'NAME slots=N' for each host, N its GPUs, or unset ANTHESIS_HOSTFILE at the worker"


def read_hostfile(path: Path) -> dict[str, int]:
    """Slots by host, in the file's order. Raises JobFailure (BAD_HOSTFILE)."""
    if not path.is_file():
        raise JobFailure("BAD_HOSTFILE", f"ANTHESIS_HOSTFILE={path} is no file; {REMEDY}")
    try:
        pool = dict(fetch_hostfile(str(path)))
    except ValueError as error:
        raise JobFailure("BAD_HOSTFILE", f"ANTHESIS_HOSTFILE={path}: {error}; {REMEDY}") from error
    if empty := [name for name, slots in pool.items() if slots < 1]:
        raise JobFailure("BAD_HOSTFILE", f"ANTHESIS_HOSTFILE={path}: {empty[0]} has slots=0; {REMEDY}")
    return pool


def find(pool: dict[str, int], spec: RunSpec, folder: JobFolder, patience_s: float) -> Hosts:
    """The hosts that are ready, those on which fewer ranks died first.

    Where the hostfile has room for the run and the hosts that are ready do not, they are asked again for a while.
    """
    layout = spec.config.layout
    least = layout.num_ranks if spec.attempt == 1 else layout.tp * layout.pp  # with fewer replicas: launch.fitted
    give_up = time.monotonic() + patience_s
    while True:
        hosts = ask_all(pool, spec, folder)
        if hosts.room[0] >= least or sum(pool.values()) < least or time.monotonic() > give_up:
            return hosts
        time.sleep(ASK_AGAIN_S)


def ask_all(pool: dict[str, int], spec: RunSpec, folder: JobFolder) -> Hosts:
    """Ready are those that answer by ssh, have this code, see the job's lease and have ended its earlier attempts."""
    answer = ask(list(pool), ["ready", str(folder.path), spec.job_id, str(spec.fencing_token)], ANSWER_WITHIN_S)
    ports = {name: int(port) for name, port in READY.findall(answer.stdout)}
    return ranked(pool, ports, answer.stderr, deaths_on_hosts(folder))


def ranked(pool: dict[str, int], ports: dict[str, int], errors: str, deaths: dict[str, int]) -> Hosts:
    """ports: of the hosts that are ready. errors: what pdsh and the other hosts said, in lines that name them."""
    ready = [Host(name, slots, ports[name]) for name, slots in pool.items() if name in ports]
    left_out = {name: _said_of(name, errors) or "no answer" for name in pool if name not in ports}
    return Hosts(tuple(sorted(ready, key=lambda host: deaths.get(host.name, 0))), left_out)


def _said_of(name: str, errors: str) -> str:
    """The host's last two lines: its own, then "pdsh@here: name: ssh exited with …"."""
    found = re.findall(rf"^(?:pdsh@\S+: )?{re.escape(name)}: (.*)$", errors, re.MULTILINE)
    return "; ".join(found[-2:])


def main(job_folder: str, hostfile: str) -> None:
    folder = JobFolder(Path(job_folder))
    spec = RunSpec.load(folder.run)
    end_with_lease(folder.lease, spec.fencing_token)
    with recorded(folder.failure(spec.fencing_token)):
        pool = read_hostfile(Path(hostfile))
        if not shutil.which("pdsh"):
            raise JobFailure(
                "BAD_HOSTFILE", "the hosts are reached by pdsh, which is not on the worker's PATH; install it"
            )
        patience_s = float(os.environ.get("ANTHESIS_HOSTS_SECONDS") or 300)
        find(pool, spec, folder, patience_s).save(folder.hosts)


if __name__ == "__main__":
    main(*sys.argv[1:])
