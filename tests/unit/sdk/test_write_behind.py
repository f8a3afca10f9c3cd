"""A stream into a file, hashed meanwhile."""

import hashlib
import multiprocessing
from pathlib import Path

from anthesis.write_behind import write_hashed

CHUNKS = (b"one", b"two" * 100_000, b"")
WHOLE = hashlib.sha256(b"".join(CHUNKS)).hexdigest()


def written(path: Path) -> tuple[str, int, bytes]:
    with path.open("wb", buffering=0) as file:
        sha256, size = write_hashed(file, hashlib.sha256(), CHUNKS)
    return sha256.hexdigest(), size, path.read_bytes()


def test_what_is_written_is_hashed(tmp_path: Path):
    assert written(tmp_path / "file") == (WHOLE, 300_003, b"".join(CHUNKS))


def test_a_process_forked_after_it_hashes_too(tmp_path: Path):
    for number in range(6):  # more than there are threads
        written(tmp_path / str(number))
    process = multiprocessing.get_context("fork").Process(target=written, args=(tmp_path / "of the child",))
    process.start()
    process.join(timeout=60)
    try:
        assert process.exitcode == 0
    finally:
        process.kill()
