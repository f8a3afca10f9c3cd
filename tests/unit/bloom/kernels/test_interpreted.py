"""Every kernel in Triton's interpreter, which is switched on before triton is imported: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("interpreted_*.py"))


@pytest.mark.timeout(600)  # of two busy cores; 10 to 60 s on idle ones
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_kernel_passes_its_tests_in_tritons_interpreter(file: Path):
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", str(file)]
    run = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=580, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
