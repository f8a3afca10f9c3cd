"""infra/slurm/worker.sbatch under a real Slurm of two nodes: srun takes the place of ssh. `make test-long`."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from anthesis.v1 import job_pb2

from services.common.settings import ROOT
from tests.support.slurm import NODES, running_slurm
from tests.support.training import MODEL, losses_alone, text_rows
from tests.support.training_platform import TrainingPlatform, losses_by_step, processes_of, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
SCRIPT = "infra/slurm/worker.sbatch"


@pytest.fixture
def slurm() -> Iterator[tuple[TrainingPlatform, dict[str, str]]]:
    folder = Path(tempfile.mkdtemp(prefix="an-"))
    with running_slurm(folder) as env, TrainingPlatform(folder / "data", has_worker=False) as platform:
        platform.dataset("texts", text_rows(300))
        variables = {"ANTHESIS_SLOTS": "1", "ANTHESIS_PYTHON": sys.executable, "GLOO_SOCKET_IFNAME": "lo"}
        yield platform, platform.environment | variables | env
    shutil.rmtree(folder, ignore_errors=True)


def test_a_worker_trains_over_the_nodes_of_an_allocation_and_ends_when_it_is_told_to(slurm) -> None:
    platform, env = slurm
    options = job_pb2.TrainOptions(steps=40, sequence_length=64, micro_batch=8, precision="fp32", layout="1x1x2")
    spec = job_pb2.PretrainSpec(
        output_model="allocated",
        tokenizer_digest=platform.tokenizer_digest,
        datasets=["texts"],
        config=json.dumps(MODEL),
        options=options,
    )
    job_id = platform.submit(spec)

    def slurms(*command: str) -> str:
        return subprocess.run(command, env=env, cwd=ROOT, text=True, check=True, stdout=subprocess.PIPE).stdout.strip()

    log = platform.log_path("worker")
    allocation = slurms("sbatch", "--parsable", "--nodes=2", f"--output={log}", SCRIPT)
    job = platform.wait_until_ended(job_id, 500)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    folder = platform.folder(job_id)
    assert folder.hostfile.read_text() == "".join(f"{node} slots=1\n" for node in NODES)
    assert losses_by_step(platform.events(job_id)) == losses_alone(folder)
    assert processes_of(job_id) == []

    slurms("scancel", "--signal=TERM", "--batch", allocation)  # as Slurm does before the time limit
    wait_for(lambda: "RUNNING" not in slurms("squeue", "-h", "-o", "%T"), 60, "the worker to end", log.read_text)
    assert "JobState=COMPLETED" in slurms("scontrol", "show", "job", allocation)
    assert not list((platform.settings.data_dir / "run").glob("hostfile-*"))
