import subprocess
import sys

import pytest

from services.common.settings import ROOT


@pytest.mark.parametrize(
    "program",
    [["-m", "services.trainer.lean", "deepspeed.launcher.launch", "--help"], ["-c", "import services.trainer.train"]],
)
def test_launcher_and_ranks_start_without_mlflow_and_what_the_harness_brings(program):
    pytest.importorskip("mlflow")
    found = subprocess.run([sys.executable, "-X", "importtime", *program], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert "deepspeed.runtime.engine" in imported
    assert not [name for name in imported if name.startswith("mlflow.")]
    of_lm_eval = {"lm_eval", "datasets", "evaluate", "sklearn", "nltk"}
    assert not imported & of_lm_eval
