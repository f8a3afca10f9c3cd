"""A tracker's program: `python -m services.trainer.tracking NAME JOB_FOLDER`, until the attempt is over."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from services.trainer.config import RunSpec
from services.trainer.files import write_whole
from services.trainer.folder import JobFolder
from services.trainer.lease_file import end_with_lease
from services.trainer.progress import Progress, ProgressReader
from services.trainer.tracking.configured import without_secrets

POLL_S = 0.3
QUIET = {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}  # tell their makers nothing, unless set


class Tracker(Protocol):
    def track(self, steps: Sequence[Progress]) -> None: ...

    def close(self, is_done: bool) -> None:
        """is_done: the run has done its last step."""


class Once:
    """A tracker that cannot take a step back is told of each once, the first time, by whatever attempt."""

    def __init__(self, tracker: Tracker, highest: Path) -> None:
        """highest: a file that remembers the last step."""
        self._tracker = tracker
        self._file = highest
        self._highest = int(highest.read_text()) if highest.exists() else 0
        self.close = tracker.close

    def track(self, steps: Sequence[Progress]) -> None:
        new = []
        for step in steps:
            if step.step > self._highest:
                new.append(step)
                self._highest = step.step
        if new:
            self._tracker.track(new)
            write_whole(self._file, str(self._highest))


def open_tracker(name: str, spec: RunSpec, folder: JobFolder) -> Tracker:
    """Imported when chosen: each has libraries of its own."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    if name == "tensorboard":
        from services.trainer.tracking.tensorboard import TensorBoard

        return TensorBoard(folder.tensorboard)
    if name == "wandb":
        from services.trainer.tracking.wandb import Wandb

        return Once(Wandb(folder, spec.job_id, described(spec)), folder.tracked("wandb.step"))
    from services.trainer.tracking.mlflow import MLflow

    return Once(MLflow(spec.job_id, described(spec)), folder.tracked("mlflow.step"))


def described(spec: RunSpec) -> dict[str, Any]:
    """What a tracker is told of the run, once."""
    config = asdict(spec.config) | {"layout": str(spec.config.layout)}
    names = {"datasets": spec.datasets, "validation_datasets": spec.validation}
    return config | {name: [dataset.name for dataset in found] for name, found in names.items()}


def follow(tracker: Tracker, reader: ProgressReader, is_over: Callable[[], bool]) -> None:
    """Track steps as they are written, until a look after `is_over` was true. After a kill some are read again."""
    over, is_done = False, False
    while not over:
        over = is_over()  # asked before the look: what was written before the end is seen
        steps, _ = reader.read()
        if steps:
            tracker.track(steps)
            reader.reported()
            is_done = steps[-1].step == steps[-1].total_steps
    tracker.close(is_done)


def main(name: str, job_folder: str) -> None:
    folder = JobFolder(Path(job_folder))
    spec = RunSpec.load(folder.run)
    end_with_lease(folder.lease, spec.fencing_token)
    end = folder.tracking_over(spec.fencing_token)

    def is_over() -> bool:
        time.sleep(0 if end.exists() else POLL_S)
        return end.exists()

    try:
        follow(open_tracker(name, spec, folder), ProgressReader(folder.progress, folder.tracked(name)), is_over)
    except ModuleNotFoundError as error:
        sys.exit(f"{error}; pip install 'anthesis-platform[tracking]'")
    except Exception as error:
        sys.exit(without_secrets(f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
