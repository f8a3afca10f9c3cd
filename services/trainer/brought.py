"""The checkpoint of another job that a job begins with: brought into its own folder, where it stays as long as the job.

Torch-free: done before the ranks start.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from services.trainer.config import RunSpec
from services.trainer.failure import JobFailure
from services.trainer.folder import JobFolder
from services.trainer.retention import finished, step_of
from services.trainer.room import is_full

MANIFEST = "manifest.json"


def bring_checkpoint(spec: RunSpec, folder: JobFolder, total_steps: int) -> None:
    """Link the newest checkpoint that `spec` names, or that of the step it names, into the job's folder.

    Raises JobFailure: NO_CHECKPOINT where there is none that is whole, BAD_STEPS where it has no step left to do.
    """
    if not spec.from_job or folder.brought.exists():
        return
    checkpoints = finished(JobFolder(folder.path.parent / spec.from_job).checkpoints)
    wanted = [path for path in checkpoints if spec.from_step in (0, step_of(path))]
    for path in wanted:
        if step_of(path) >= total_steps:
            what = f"the run has {total_steps} steps, and {step_of(path)} are done in the checkpoint of {spec.from_job}"
            raise JobFailure("BAD_STEPS", f"{what}; ask for more steps, or for an earlier checkpoint", "steps")
        if _link(path, folder.brought):
            return
    there = ", ".join(str(step_of(path)) for path in checkpoints) or "none"
    which = f"no whole checkpoint of step {spec.from_step}" if spec.from_step else "no whole checkpoint"
    remedy = "keep_every_steps keeps them, also when a job has ended; they lie on the machine that ran it"
    raise JobFailure("NO_CHECKPOINT", f"{spec.from_job} has {which} here (steps: {there}); {remedy}", "from_checkpoint")


def _link(source: Path, target: Path) -> bool:
    """Whether all of it is there: the other job may remove it meanwhile. `target` appears whole or not at all."""
    building = target.with_name(f"{target.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir()
        for path in source.iterdir():
            os.link(path, building / path.name)
        if not _is_whole(building):
            return False
        os.replace(building, target)
        return True
    except OSError as error:
        if is_full(error):
            raise
        return False
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    files: dict[str, str] = json.loads((folder / MANIFEST).read_text())["files"]
    return all((folder / name).exists() and _sha256(folder / name) == digest for name, digest in files.items())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
