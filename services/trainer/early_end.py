"""Why the ranks ended before the run's end, as rank 0 tells the worker. The process that knows writes it down."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from services.trainer.files import write_whole


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyEnd:
    again: bool  # start the ranks again at once: they go on from an earlier checkpoint
    reason: str

    def save(self, path: Path) -> None:
        write_whole(path, json.dumps(asdict(self)))

    @classmethod
    def take(cls, path: Path) -> "EarlyEnd | None":
        """What was written to `path`, once; None where nothing was."""
        if not path.exists():
            return None
        found = cls(**json.loads(path.read_text()))
        path.unlink()
        return found
