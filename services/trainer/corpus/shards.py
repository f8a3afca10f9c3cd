"""What the shards of a tokenizing run are called, and finding them."""

import re
from pathlib import Path

from services.trainer.corpus.indexed import idx_path
from services.trainer.failure import JobFailure

_NUMBERED = re.compile(r"-(\d{5,})-of-(\d{5,})\.idx")


def shard_prefix(prefix: Path, shard: int, num_shards: int) -> Path:
    """Where shard number `shard`, from 0, of a run that writes to `prefix` lies."""
    return prefix.with_name(f"{prefix.name}-{shard:05d}-of-{num_shards:05d}")


def find_shards(prefix: Path) -> list[Path]:
    """The prefixes of one shard, or of all that a tokenizing run has written to `prefix`, in order.

    Raises JobFailure where there is none, and where the run is not finished.
    """
    if idx_path(prefix).exists():
        return [prefix]
    files = prefix.parent.iterdir() if prefix.parent.is_dir() else ()
    found = {
        (int(match[1]), int(match[2]))
        for file in files
        if file.name.startswith(prefix.name) and (match := _NUMBERED.fullmatch(file.name[len(prefix.name) :]))
    }
    if not found:
        raise JobFailure("BAD_DATA", f"no shard {prefix}.idx, and none numbered; check the path", "datasets")
    totals = {total for _, total in found}
    if len(totals) > 1:
        raise JobFailure(
            "BAD_DATA", f"{prefix} has shards of several runs, of {sorted(totals)}; delete one's", "datasets"
        )
    total = totals.pop()
    missing = sorted(set(range(total)) - {number for number, _ in found})
    if missing:
        remedy = "run the same tokenizing command again: it goes on where it stopped"
        raise JobFailure("BAD_DATA", f"{prefix} has no shard {missing[0]} of {total}; {remedy}", "datasets")
    return [shard_prefix(prefix, number, total) for number in range(total)]
