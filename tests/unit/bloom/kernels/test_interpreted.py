"""Every kernel in Triton's interpreter, which is switched on before triton is imported: in a process of its own.

The interpreter uses one core, so as many processes run at once as there are cores.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("interpreted_*.py"), reverse=True)  # sampling, the longest, begins
Run = subprocess.CompletedProcess[str]


def interpret(file: Path) -> Run:
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", str(file)]
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=580, check=False)


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[Path, Future[Run]]]:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield {file: pool.submit(interpret, file) for file in FILES}


@pytest.mark.timeout(900)  # of two busy cores; two minutes on idle ones
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_kernel_passes_its_tests_in_tritons_interpreter(file: Path, runs: dict[Path, Future[Run]]):
    run = runs[file].result()
    assert run.returncode == 0, run.stdout + run.stderr
