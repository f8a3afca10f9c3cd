"""Files that are whole or absent, whatever is killed, and stay so when the power goes."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a small file: readers see what was there before, or all of it."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(text)
    os.replace(temporary, path)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
