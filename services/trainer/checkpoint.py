"""Checkpoints that are whole or absent: written aside, checksummed, then renamed.

What a checkpoint holds is DeepSpeed's: weights, master weights and optimizer state, per rank. Schedule, data order and
dropout are functions of the step, so the step is all the rest of the state.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

KEPT = 2  # newest checkpoints that stay
TAG = "state"
MANIFEST = "manifest.json"


def save(engine: Any, folder: Path, step: int, fingerprint: str) -> None:
    """Write the state after `step` steps; collective over all ranks. fingerprint: of the tokens it was trained on."""
    target = folder / f"step-{step:08d}"
    building = folder / f"{target.name}.building"
    if dist.get_rank() == 0:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(building), tag=TAG)
    dist.barrier()
    if dist.get_rank() == 0:
        files = {str(path.relative_to(building)): _synced_sha256(path) for path in _files(building)}
        manifest = building / MANIFEST
        manifest.write_text(json.dumps({"step": step, "fingerprint": fingerprint, "files": files}))
        _synced_sha256(manifest)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(building, target)
        _sync_folder(folder)
        for old in _steps(folder)[KEPT:]:
            shutil.rmtree(old)
    dist.barrier()


def restore(engine: Any, folder: Path, fingerprint: str) -> int:
    """Load the newest whole checkpoint into the engine; return its step, 0 when there is none. Collective."""
    found: list[str | None] = [None]
    if dist.get_rank() == 0:
        found = [next((path.name for path in _steps(folder) if _is_whole(path, fingerprint)), None)]
    dist.broadcast_object_list(found, src=0)
    if found[0] is None:
        return 0
    loaded, _ = engine.load_checkpoint(str(folder / found[0]), tag=TAG)
    if loaded is None:
        raise RuntimeError(f"DeepSpeed did not load {folder / found[0]}")
    return int(found[0].removeprefix("step-"))


def _steps(folder: Path) -> list[Path]:
    """Finished checkpoints, newest first."""
    return sorted((path for path in folder.glob("step-*") if path.suffix == ""), reverse=True)


def _is_whole(path: Path, fingerprint: str) -> bool:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    return manifest["fingerprint"] == fingerprint and all(
        (path / name).exists() and _sha256(path / name) == digest for name, digest in manifest["files"].items()
    )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _synced_sha256(path: Path) -> str:
    """Force a file to disk; its sha256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
