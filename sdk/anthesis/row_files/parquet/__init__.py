"""Rows of a Parquet file, which a process of its own reads within a limit on memory.

What a page holds is known once it is unpacked, and no figure in the file need be true: one row of a small file can ask
for all memory there is. So the limit is the system's.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from anthesis.row_files.columns import BadRow, Choose, Row
from anthesis.row_files.unpack import NO_PYARROW

MAX_MEMORY_BYTES = 2 << 30
_ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def read_parquet(path: Path, choose: Choose, max_memory_bytes: int = MAX_MEMORY_BYTES) -> Iterator[Row | BadRow]:
    """A row for each of the file's.

    Raises ValueError for a file that is none, or that cannot be read within the limit on memory.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"{path.name} {NO_PYARROW}")
    header = next(_ask(path, max_memory_bytes, None))
    for answer in _ask(path, max_memory_bytes, choose(list(header["columns"]))):
        yield BadRow(answer["bad"]) if "bad" in answer else answer["row"]


def _ask(path: Path, max_memory_bytes: int, chosen: dict[str, str] | None) -> Iterator[Row]:
    """What the process says, line by line."""
    arguments = [str(path), str(max_memory_bytes), json.dumps(chosen)]
    command = [sys.executable, "-P", "-m", "anthesis.row_files.parquet", *arguments]
    env = os.environ | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (
        tempfile.TemporaryFile() as complaint,
        subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaint
        ) as process,
    ):
        assert process.stdout
        try:
            for line in process.stdout:
                if line.endswith(b"\n"):  # else it died in the middle
                    yield json.loads(line)
            code = process.wait()
        finally:
            process.kill()
        if code:
            complaint.seek(0)
            said = complaint.read().decode(errors="replace").strip().splitlines()
            raise ValueError(f"{path.name} {said[-1] if said and code == 1 else _died(max_memory_bytes)}")


def _died(max_memory_bytes: int) -> str:
    return f"cannot be read within {max_memory_bytes} bytes of memory; write it with shorter rows and smaller pages"
