"""What a worker asks of a host: `python -m services.trainer.on_host ready FOLDER JOB_ID TOKEN`, `… stacks JOB_ID`."""

import socket
import sys
from pathlib import Path

from services.trainer.folder import JobFolder
from services.trainer.lease_file import token_of
from services.trainer.processes import kill_leftovers
from services.trainer.watchdog import stacks


def ready(job_folder: str, job_id: str, token: str) -> str:
    """End what is left of the job's earlier attempts here; "ready" and a free port. Exits where the folder is another.

    The lease that the worker has just written shows that the folder is shared.
    """
    lease = JobFolder(Path(job_folder)).lease
    if token_of(lease) != int(token):
        sys.exit(f"{lease} does not hold token {token}: let ANTHESIS_DATA be one shared folder at the same path")
    kill_leftovers(job_id, older_than=int(token))
    return f"ready {free_port()}"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    print(ready(*sys.argv[2:]) if sys.argv[1] == "ready" else stacks(*sys.argv[2:]))
