"""Which checkpoints stay. Torch-free: the worker that clears up after a job asks, too."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    last: int = 2  # the newest
    every: int = 0  # those of steps that this divides, for good; 0: none

    def surplus(self, checkpoints: Sequence[Path]) -> list[Path]:
        """What of `checkpoints`, newest first, is to be removed."""
        return [path for path in checkpoints[self.last :] if not self.every or step_of(path) % self.every]


def finished(folder: Path) -> list[Path]:
    """Finished checkpoints, newest first."""
    return sorted((path for path in folder.glob("step-*") if path.suffix == ""), reverse=True)


def step_of(checkpoint: Path) -> int:
    """Steps done when it was written."""
    return int(checkpoint.name.removeprefix("step-"))
