"""`python -m services.trainer.import_model JOB_FOLDER`: bring the checkpoint that a job names from the hub.

A shard at a time; what the store has is not fetched, so an attempt goes on where the one before was.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from anthesis.hub import SMALL_FILES, TOKENIZER_FILE, HubCheckpoint, find_checkpoint, notices, weight_files

from services.common.artifacts import ArtifactStore
from services.trainer.failure import JobFailure, recorded
from services.trainer.files import write_whole
from services.trainer.folder import JobFolder
from services.trainer.lease_file import end_with_lease
from services.trainer.room import when_there_is_room
from services.trainer.spec import Spec


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportSpec(Spec):
    """Kept as `run.json` in the job's folder."""

    model: str  # the repository


def main(job_folder: str) -> None:
    folder = JobFolder(Path(job_folder))
    spec = ImportSpec.load(folder.run)
    end_with_lease(folder.lease, spec.fencing_token)
    store = spec.store()
    with recorded(folder.failure(spec.fencing_token)):
        try:
            checkpoint = find_checkpoint(spec.model, SMALL_FILES, cache=folder.hub, token=False)
            paths = [*weight_files(checkpoint.folder, checkpoint), *notices(checkpoint.folder)]
            if not (checkpoint.folder / TOKENIZER_FILE).is_file():
                raise ValueError(f"{spec.model} on the hub has no {TOKENIZER_FILE}; use --from DIR --tokenizer FILE")
            files = [(path, bring(store, checkpoint, path)) for path in (*paths, TOKENIZER_FILE)]
        except ValueError as error:
            raise JobFailure("IMPORT_FAILED", f"{error} of `anthesis models import`", "model") from error
        when_there_is_room(lambda: write_whole(folder.result(spec.fencing_token), json.dumps(files)))


def bring(store: ArtifactStore, checkpoint: HubCheckpoint, path: str) -> str:
    """The digest of a file that is in the store then."""
    if path not in checkpoint.shards:
        return when_there_is_room(lambda: store.write_file(checkpoint.folder / path))
    digest, size = checkpoint.shards[path]
    if not store.exists(digest):
        with checkpoint.fetched(path) as file:
            found = when_there_is_room(lambda: store.write_file(file))
        if found != digest:
            raise ValueError(
                f"{path} of {checkpoint.name} came as {found}, and the hub says {digest}; try again, or use --from DIR"
            )
    print(f"{path}: {size:,} bytes are in the store", flush=True)
    return digest


if __name__ == "__main__":
    main(sys.argv[1])
