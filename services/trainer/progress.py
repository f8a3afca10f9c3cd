"""How far training is: rank 0 writes JSON lines, the worker reads them and tells the registry."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

FLUSH_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    step: int  # steps done
    total_steps: int
    loss: float  # mean over the step's targets, nats
    learning_rate: float
    grad_norm: float  # before clipping
    tokens_per_second: float
    tokens_seen: int
    seconds_left: float
    time: float  # Unix


class ProgressWriter:
    """Rank 0's side. Lines appear within FLUSH_S, at checkpoints at once."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("a")
        self._flushed = time.monotonic()

    def step(self, progress: Progress) -> None:
        self._file.write(json.dumps({"progress": asdict(progress)}) + "\n")
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def message(self, text: str) -> None:
        """An event for people, for example "attempt 2 resumed from step 300"."""
        self._file.write(json.dumps({"message": text}) + "\n")
        self.flush()

    def flush(self) -> None:
        self._file.flush()
        self._flushed = time.monotonic()


class ProgressReader:
    """The worker's side: what came since it last looked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> tuple[list[Progress], list[str]]:
        """New steps and new messages; a line still being written waits for the next call."""
        if not self._path.exists():
            return [], []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            complete = file.read().rpartition(b"\n")[0]
        if not complete:
            return [], []
        self._offset += len(complete) + 1
        lines = [json.loads(line) for line in complete.splitlines()]
        steps = [Progress(**line["progress"]) for line in lines if "progress" in line]
        return steps, [line["message"] for line in lines if "message" in line]
