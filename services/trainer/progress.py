"""How far training is: rank 0 writes JSON lines, the worker reads them and tells the registry."""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from services.trainer.files import write_whole
from services.trainer.room import is_full

FLUSH_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationLoss:
    """Of a validation dataset's texts in one language; "" where the rows name none."""

    dataset: str
    language: str
    bits_per_byte: float
    num_bytes: int  # UTF-8


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
    samples_seen: int = 0  # sequences
    model_flops_per_second: float = 0.0  # of all ranks; hardware's counts what is computed again
    hardware_flops_per_second: float = 0.0
    validation: tuple[ValidationLoss, ...] = ()  # measured after this step; most steps have none

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Progress":
        losses = tuple(ValidationLoss(**loss) for loss in fields.get("validation", ()))
        return cls(**{**fields, "validation": losses})


class ProgressWriter:
    """Rank 0's side; appends to what earlier attempts wrote. Lines appear within FLUSH_S."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._pending = b"\n"  # a killed attempt may have left half a line
        self._flushed = time.monotonic()

    def step(self, progress: Progress) -> None:
        self._write({"progress": asdict(progress)})
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def message(self, text: str) -> None:
        """An event for people, for example "attempt 2 resumed from step 300"."""
        self._write({"message": text})
        self.flush()

    def _write(self, line: dict[str, Any]) -> None:
        self._pending += json.dumps(line).encode() + b"\n"

    def flush(self) -> None:
        """Where the disk is full, lines wait in memory for the next time."""
        try:
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) :]
        except OSError as error:
            if not is_full(error):
                raise
            os.utime(self._file.fileno())  # what the worker's watchdog can see
        self._flushed = time.monotonic()


class ProgressReader:
    """The worker's side. What was reported is remembered beside the file, so that the next attempt, on a worker that
    may have been killed in between, goes on from there: steps may be reported twice, never left out.
    """

    def __init__(self, path: Path, reported: Path | None = None) -> None:
        """reported: where what was reported is remembered, for a reader other than the worker."""
        self._path = path
        self._reported = reported or path.with_suffix(".reported")
        self._offset = int(self._reported.read_text()) if self._reported.exists() else 0

    def read(self) -> tuple[list[Progress], list[str]]:
        """New steps and new messages; a line still being written waits for the next call."""
        if not self._path.exists():
            return [], []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            complete = file.read().rpartition(b"\n")[0]
        self._offset += len(complete) + 1 if complete else 0
        lines = [line for text in complete.splitlines() if (line := _parsed(text))]
        steps = [Progress.from_json(line["progress"]) for line in lines if "progress" in line]
        return steps, [line["message"] for line in lines if "message" in line]

    def reported(self) -> None:
        """All that was read is with the registry."""
        try:
            write_whole(self._reported, str(self._offset))
        except OSError as error:  # the next attempt may report some again
            if not is_full(error):
                raise


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError:
        return {}  # blank, or cut off by a kill
