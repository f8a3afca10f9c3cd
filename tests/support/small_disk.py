"""A small file system of its own, which a test can fill."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A tmpfs at `folder`; skips the test, aloud, where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes what room there is."""
    path = disk / "filler"
    with path.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """The disk is full meanwhile, whatever is removed from it."""
    done = threading.Event()

    def keep_full() -> None:
        while not done.wait(0.05):
            fill(disk)

    filler = fill(disk)
    thread = threading.Thread(target=keep_full)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        filler.unlink()
