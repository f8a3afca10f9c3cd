"""What a tokenizing run has done so far, beside its shards: what they are made from, and what is in each.

A run that is started again goes on behind the last shard named here, if it is the same run.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from services.trainer.failure import JobFailure

VERSION = 1
MAX_BAD_ROWS = 1000  # that are kept by name; all are counted


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """A finished shard."""

    num_documents: int
    num_tokens: int
    text_bytes: int  # of its documents, in UTF-8
    num_empty: int  # rows without text, left out
    num_bad: int  # rows that could not be read, left out
    last_file: str  # the input that its last piece is of, and
    last_row: int  # how many of that file's rows come before the next shard


@dataclass(kw_only=True, slots=True)
class Manifest:
    tokenizer: str  # digest of tokenizer.json
    made_from: dict[str, Any]  # all else that the tokens depend on
    num_shards: int  # when it is finished
    shards: list[ShardRecord] = field(default_factory=list)
    bad_rows: list[str] = field(default_factory=list)  # the first of them

    @property
    def key(self) -> str:
        parts = {"version": VERSION, "tokenizer": self.tokenizer, "made_from": self.made_from}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def total(self, name: str) -> int:
        """The sum of a count over the shards."""
        return sum(getattr(shard, name) for shard in self.shards)

    def save(self, path: Path) -> None:
        building = path.with_name(f"{path.name}.part")
        with building.open("w") as file:
            json.dump({"key": self.key, **asdict(self)}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(building, path)


def manifest_path(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.json")


def load_manifest(path: Path) -> Manifest:
    """Raises JobFailure where `path` is not what a run has written."""
    try:
        fields = json.loads(path.read_text())
        key, shards = fields.pop("key"), fields.pop("shards")
        manifest = Manifest(**fields, shards=[ShardRecord(**shard) for shard in shards])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise JobFailure("BAD_DATA", f"{path} is no record of a tokenizing run ({error}); {_REMEDY}") from error
    if manifest.key != key:
        raise JobFailure("BAD_DATA", f"{path} was changed, or written by another version; {_REMEDY}")
    return manifest


def resume(path: Path, fresh: Manifest) -> Manifest:
    """The run recorded at `path`; `fresh` if there is none. Raises JobFailure where it is another run than `fresh`."""
    if not path.exists():
        return fresh
    found = load_manifest(path)
    if found.key == fresh.key:
        return found
    if found.tokenizer != fresh.tokenizer:
        what = f"tokenizer {found.tokenizer}, not {fresh.tokenizer}"
    else:
        differing = [name for name, value in fresh.made_from.items() if found.made_from.get(name) != value]
        what = f"another value of: {', '.join(differing) or 'an option that is no more'}"
    raise JobFailure("BAD_DATA", f"{path} records a run with {what}; {_REMEDY}")


_REMEDY = "choose another --output, or delete that run's files"
