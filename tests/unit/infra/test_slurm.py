"""The scripts of infra/slurm, up to where Slurm itself is needed: tests/distributed/test_slurm.py has the rest."""

import os
import subprocess
from pathlib import Path

import pytest

from services.common.settings import ROOT

SCRIPT = "infra/slurm/worker.sbatch"


def test_srun_reaches_a_node_when_pdsh_calls_ssh(tmp_path: Path) -> None:
    srun = tmp_path / "srun"  # says what it was told; the command comes last
    srun.write_text('#!/bin/bash\nfor word in "$@"; do echo "[$word]"; done\n')
    srun.chmod(0o755)
    options = ["-oConnectTimeout=10", "-p", "2222", "-o", "BatchMode=yes", "-2", "-a", "-x", "-lroot"]  # pdsh 2.34's
    result = subprocess.run(
        ["infra/slurm/bin/ssh", *options, "node7", "cd /a && echo 'b  c'"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        cwd=ROOT,
        text=True,
        check=True,
        capture_output=True,
    )
    told = result.stdout.splitlines()
    assert "[--nodelist=node7]" in told
    assert told[-3:] == ["[bash]", "[-c]", "[cd /a && echo 'b  c']"]


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("ANTHESIS_DATA", "is the data folder that all nodes share"),
        ("ANTHESIS_REGISTRY_ADDRESS", "is where the nodes reach the registry"),
        ("ANTHESIS_BROKER_URL", "is where the nodes reach the broker"),
    ],
)
def test_the_worker_is_not_started_without_what_it_needs(tmp_path: Path, missing: str, told: str) -> None:
    env = {
        "PATH": os.environ["PATH"],
        "SLURM_SUBMIT_DIR": str(ROOT),
        "ANTHESIS_DATA": str(tmp_path),
        "ANTHESIS_REGISTRY_ADDRESS": "registry:50053",
        "ANTHESIS_BROKER_URL": "redis://broker",
    }
    del env[missing]
    result = subprocess.run(["bash", SCRIPT], env=env, cwd=ROOT, text=True, capture_output=True)
    assert result.returncode != 0
    assert f"{missing}: {told}" in result.stderr
    assert list(tmp_path.iterdir()) == []
