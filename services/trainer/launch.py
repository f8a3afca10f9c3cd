"""The commands of an attempt's two stages, and the environment they run in."""

import base64
import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

from bloom.layout import Layout
from services.common.settings import ROOT
from services.trainer.config import RunSpec
from services.trainer.failure import JobFailure
from services.trainer.processes import JOB_VARIABLE, TOKEN_VARIABLE


def fitted(spec: RunSpec, cores: int) -> RunSpec:
    """The run as this machine can do it: more ranks than cores would starve all else.

    Two ranks run anywhere, so that layouts can be tried on a single core. A job that comes back, to a machine smaller
    than it began on, goes on with fewer replicas and the same batch.
    Raises JobFailure (BAD_LAYOUT) where there are too many ranks all the same.
    """
    layout, most = spec.config.layout, max(2, cores)
    if spec.attempt > 1 and layout.num_ranks > most:
        spec = replace(spec, config=spec.config.with_fewer_replicas(most // (layout.tp * layout.pp)))
    if spec.config.layout.num_ranks > most:
        raise JobFailure(
            "BAD_LAYOUT",
            f"layout '{layout}' asks for {layout.num_ranks} processes, the worker's machine has {cores} cores; "
            f"use at most '1x1x{most}', or a larger machine",
            "layout",
        )
    return spec


def prepare_command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "services.trainer.prepare", str(folder)]


def deepspeed_command(folder: Path, layout: Layout) -> list[str]:
    """DeepSpeed's launcher for this machine, as the `deepspeed` command would start it: one process per rank.

    Started directly, so that it leads the process group and nothing stands between it and the worker.
    """
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(layout.num_ranks))}).encode()).decode()
    launcher = [sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={world}", "--log_level=warning"]
    address = ["--master_addr=127.0.0.1", f"--master_port={_free_port()}", "--no_local_rank"]
    return [*launcher, *address, "--module", "services.trainer.train", str(folder)]


def environment(job_id: str, fencing_token: int, layout: Layout) -> dict[str, str]:
    """The worker's environment, marked with the job, and the cores shared among the ranks."""
    env = dict(os.environ)
    env.update({
        JOB_VARIABLE: job_id,
        TOKEN_VARIABLE: str(fencing_token),
        "OMP_NUM_THREADS": str(max(1, num_cores() // layout.num_ranks)),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    })  # fmt: skip
    if not Path("/dev/nvidiactl").exists():
        env["DS_ACCELERATOR"] = "cpu"
    return env


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
