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


def fitted(spec: RunSpec, most: int, room: str) -> RunSpec:
    """The run with `most` ranks or fewer; `room` says what has no room for more.

    A job that comes back, to a machine smaller than it began on or to fewer hosts, goes on with fewer replicas and the
    same batch. Raises JobFailure (BAD_LAYOUT) where there are too many ranks all the same.
    """
    layout = spec.config.layout
    if spec.attempt > 1 and layout.num_ranks > most:
        spec = replace(spec, config=spec.config.with_fewer_replicas(most // (layout.tp * layout.pp)))
    if spec.config.layout.num_ranks > most:
        remedy = f"use at most '1x1x{most}', or " if most else ""
        what = f"layout '{layout}' asks for {layout.num_ranks} processes, {room}"
        raise JobFailure("BAD_LAYOUT", f"{what}; {remedy}give the worker more", "layout")
    return spec


def this_machine(cores: int) -> tuple[int, str]:
    """How many ranks run here, which `fitted` takes: more than there are cores would starve all else.

    Two run anywhere, so that layouts can be tried on a single core.
    """
    return max(2, cores), f"the worker's machine has {cores} cores"


def prepare_command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "services.trainer.prepare", str(folder)]


def report_command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "services.trainer.dataset_report", str(folder)]


def tokenizer_command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "services.trainer.train_tokenizer", str(folder)]


def clean_command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "services.trainer.clean_corpus", str(folder)]


def import_command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "services.trainer.import_model", str(folder)]


def harness_command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "services.trainer.harness", str(folder)]


def evaluate_command(folder: Path) -> list[str]:
    return [sys.executable, "-m", "services.trainer.evaluate", str(folder)]


def deepspeed_command(folder: Path, layout: Layout) -> list[str]:
    """DeepSpeed's launcher for this machine, as the `deepspeed` command would start it: one process per rank.

    Started directly, so that it leads the process group and nothing stands between it and the worker.
    """
    world = base64.urlsafe_b64encode(json.dumps({"localhost": list(range(layout.num_ranks))}).encode()).decode()
    launcher = [sys.executable, "-m", "services.trainer.lean", "deepspeed.launcher.launch"]
    options = [f"--world_info={world}", "--log_level=warning"]
    address = ["--master_addr=127.0.0.1", f"--master_port={_free_port()}", "--no_local_rank"]
    return [*launcher, *options, *address, "--module", "services.trainer.train", str(folder)]


def environment(job_id: str, fencing_token: int, layout: Layout) -> dict[str, str]:
    """For an attempt's processes on this machine."""
    return marked(job_id, fencing_token) | for_ranks(layout.num_ranks)


def marked(job_id: str, fencing_token: int) -> dict[str, str]:
    """The worker's environment, marked with the job."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return dict(os.environ) | {JOB_VARIABLE: job_id, TOKEN_VARIABLE: str(fencing_token), "PYTHONPATH": path}


def for_ranks(num_ranks: int) -> dict[str, str]:
    """The cores of a host shared among its ranks, and what it computes on."""
    env = {"OMP_NUM_THREADS": str(max(1, num_cores() // num_ranks))}
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
