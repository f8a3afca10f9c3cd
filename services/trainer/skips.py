"""Samples that a run leaves out: what it had seen between a checkpoint and what went wrong, before it went back.

They are recorded in the job's folder. With them the order of the data stays a pure function: of the seed, the number of
samples consumed, and the skips.
"""

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

from services.trainer.files import sync_folder, write_whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Skip:
    """Samples first .. end - 1 of the order without skips, and why they are left out."""

    first: int
    end: int
    step: int  # which went wrong
    back_to: int  # step of the checkpoint, 0: the beginning
    reason: str


@dataclass(frozen=True, slots=True)
class Skips:
    """In the order in which they came to be; a later one may lie around earlier ones, and never cuts one."""

    skips: tuple[Skip, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls(tuple(Skip(**fields) for fields in json.loads(path.read_text())) if path.exists() else ())

    def save(self, path: Path) -> None:
        """Durably: who goes back has forgotten the samples."""
        write_whole(path, json.dumps([asdict(skip) for skip in self.skips], indent=1))
        sync_folder(path.parent)

    def at(self, consumed: int) -> int:
        """The sample that comes when `consumed` have been seen."""
        sample = consumed
        for first, end in self._outermost():
            if sample < first:
                break
            sample += end - first
        return sample

    def past(self, consumed_then: int, consumed_now: int, *, step: int, back_to: int, reason: str) -> Self:
        """Also without what was seen since `consumed_then`, where the run goes back to."""
        first, end = self.at(consumed_then), self.at(consumed_now - 1) + 1
        return type(self)((*self.skips, Skip(first=first, end=end, step=step, back_to=back_to, reason=reason)))

    def _outermost(self) -> list[tuple[int, int]]:
        """Ranges that no other lies around, in order."""
        found: list[tuple[int, int]] = []
        for first, end in sorted((skip.first, -skip.end) for skip in self.skips):
            if not found or -end > found[-1][1]:
                found.append((first, -end))
        assert all(before[1] <= after[0] for before, after in pairwise(found)), f"skips that cut each other: {found}"
        return found
