"""`python -m services.trainer.clean_corpus JOB_FOLDER`: clean the datasets that the job names into the store.

An attempt goes on where the one before was: tasks that were completed are not done again.
"""

import gzip
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.trainer.failure import JobFailure, recorded
from services.trainer.files import write_whole
from services.trainer.folder import JobFolder
from services.trainer.lease_file import end_with_lease
from services.trainer.room import when_there_is_room
from services.trainer.spec import Spec

ROWS_FILE, REPORT_FILE = "rows.jsonl", "report.json"  # as the registry expects them


@dataclass(frozen=True, kw_only=True, slots=True)
class CleanSpec(Spec):
    """Kept as `run.json` in the job's folder."""

    digests: tuple[str, ...]  # of the datasets
    default_language: str  # "": none
    near_duplicates: bool  # drop them
    foreign_lines: bool  # remove them
    personal_information: tuple[str, ...]  # kinds to redact; none: all


def main(job_folder: str) -> None:
    folder = JobFolder(Path(job_folder))
    spec = CleanSpec.load(folder.run)
    end_with_lease(folder.lease, spec.fencing_token)
    store = spec.store()
    with recorded(folder.failure(spec.fencing_token)):
        given, output = folder.cleaning / "in", folder.cleaning / "out"
        files = [(f"{number:05d}.jsonl", digest) for number, digest in enumerate(spec.digests)]
        when_there_is_room(lambda: store.materialize(files, given))
        clean(spec, given, output)
        rows = folder.cleaning / ROWS_FILE
        when_there_is_room(lambda: gather(output / "clean", rows))
        if not rows.stat().st_size:
            why = f"of the rows nothing is left: {(output / 'report.md').read_text()[:2000]}"
            raise JobFailure("BAD_DATA", why, "datasets")
        digest = when_there_is_room(lambda: store.write_file(rows))
        report = when_there_is_room(lambda: store.write_file(output / REPORT_FILE))
        result = json.dumps([[ROWS_FILE, digest], [REPORT_FILE, report]])
        when_there_is_room(lambda: write_whole(folder.result(spec.fencing_token), result))


def clean(spec: CleanSpec, given: Path, output: Path) -> None:
    """Raises JobFailure for a setting that there is not, and where this machine has not what cleaning needs."""
    try:
        from services.trainer.cleaning.config import CleaningConfig
        from services.trainer.cleaning.errors import ConfigError
        from services.trainer.cleaning.stages import run
    except ModuleNotFoundError as error:
        remedy = "install the extra `cleaning` on the trainer's machine"
        raise JobFailure("NOT_INSTALLED", f"cleaning needs {error.name}, which is missing; {remedy}") from error
    settings: dict[str, Any] = {
        "input": str(given),
        "output": str(output),
        "default_language": spec.default_language or None,
        "near_duplicates": spec.near_duplicates,
        "foreign_lines": spec.foreign_lines,
    }
    if spec.personal_information:
        settings["pii"] = spec.personal_information
    try:
        config = CleaningConfig.read(None, settings).resolved()
    except ConfigError as error:
        raise JobFailure("BAD_SETTING", str(error)) from error
    run(config)


def gather(folder: Path, rows: Path) -> None:
    """All rows that are left, by language, in one file."""
    with rows.open("wb") as file:
        for part in sorted(folder.rglob("*.jsonl.gz")):
            with gzip.open(part) as lines:
                shutil.copyfileobj(lines, file)


if __name__ == "__main__":
    main(sys.argv[1])
