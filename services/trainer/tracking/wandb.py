"""Weights & Biases, as its own WANDB_… variables say: project, entity, key, server, offline or not."""

import os
from collections.abc import Sequence
from typing import Any

import wandb

from services.trainer.folder import JobFolder
from services.trainer.progress import Progress
from services.trainer.tracking.figures import figures


class Wandb:
    """A run whose id is the job's. W&B takes no step twice: of those that an attempt repeats the first stay."""

    def __init__(self, folder: JobFolder, job_id: str, config: dict[str, Any]) -> None:
        self._run = wandb.init(
            id=job_id,
            name=os.environ.get("WANDB_NAME") or job_id,
            resume="allow",
            config=config,
            dir=os.environ.get("WANDB_DIR") or str(folder.path),
            settings=wandb.Settings(console="off", save_code=False, disable_git=True),
        )

    def track(self, steps: Sequence[Progress]) -> None:
        for step in steps:
            self._run.log(figures(step), step=step.step)

    def close(self, is_done: bool) -> None:
        self._run.finish(exit_code=0 if is_done else 1)
