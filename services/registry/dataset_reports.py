"""Reports on datasets, made by jobs before anything is trained: what is asked for, and what is kept of it.

The trainer writes the report (services/trainer/dataset_report); docs/datasets.md says what is in it.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from anthesis.rows import YAML_FORMATS
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.artifacts import ArtifactStore
from services.common.errors import InvalidArgument
from services.registry import audit
from services.registry.aliases import resolve
from services.registry.checkpoints import File
from services.registry.database import Database
from services.registry.dataset_names import check_datasets_exist
from services.registry.job_specs import RANGES, ValidateDatasetSpec
from services.registry.projects.artifacts import note_artifacts
from services.registry.references import keep
from services.registry.tables import Dataset, Job
from services.registry.tokenizers import vocabulary_size

REPORT_FILE = "report.json"
FORMAT = 1
MAX_BYTES = 16 << 20
SEQUENCE_LENGTH = 512  # where the request says none; as a training job's


async def resolve_validation(
    database: Database, artifacts: ArtifactStore, spec: ValidateDatasetSpec
) -> ValidateDatasetSpec:
    """The spec with its references found and fixed. Raises NotFound, InvalidArgument naming the parameter."""
    length = spec.sequence_length or SEQUENCE_LENGTH
    if length not in RANGES["sequence_length"]:
        allowed = RANGES["sequence_length"].text
        raise InvalidArgument(f"sequence_length={length} is out of range; choose a value in {allowed}")
    if not spec.dataset:
        raise InvalidArgument("dataset is empty; name the dataset to look through")
    async with database.read() as session:
        dataset, *held_out = await check_datasets_exist(session, [spec.dataset, *spec.held_out])
        base = await resolve(session, spec.base) if spec.base else None
    _check_datasets(dataset, held_out)
    digest = base.tokenizer_digest if base else spec.tokenizer_digest
    if base and spec.tokenizer_digest not in ("", digest):
        what = f"tokenizer_digest={spec.tokenizer_digest[:80]!r} is not that of base {base.name}"
        raise InvalidArgument(f"{what}; leave one of them out")
    if not digest:
        raise InvalidArgument("neither base nor tokenizer_digest is set; say whose tokens are to be counted")
    await asyncio.to_thread(vocabulary_size, artifacts, digest)
    return replace(
        spec,
        dataset=dataset.name,
        held_out=[row.name for row in held_out],
        base=base.name if base else "",
        tokenizer_digest=digest,
        sequence_length=length,
    )


def _check_datasets(dataset: Dataset, held_out: Sequence[Dataset]) -> None:
    for row in (dataset, *held_out):
        if row.format in YAML_FORMATS:
            what = f"dataset {row.name!r} is a {row.format}, which has no rows"
            raise InvalidArgument(f"{what}; name the datasets that it is made of")
    if same := next((row for row in held_out if row.digest == dataset.digest), None):
        raise InvalidArgument(f"held_out: {same.name!r} has the rows of {dataset.name!r} itself; name another")


def check_report(artifacts: ArtifactStore, files: Sequence[File]) -> str:
    """The digest of the report among a job's files. Raises InvalidArgument unless it is one. Blocking."""
    if [file.path for file in files] != [REPORT_FILE]:
        raise InvalidArgument(f"a validation ends with one file, {REPORT_FILE}, not {len(files)} others")
    digest = files[0].digest
    if (size := artifacts.size(digest)) > MAX_BYTES:
        raise InvalidArgument(f"{REPORT_FILE} has {size} bytes; write at most {MAX_BYTES}")
    try:
        report: Any = json.loads(artifacts.read_bytes(digest))
    except (ValueError, RecursionError):
        report = None
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise InvalidArgument(f"{REPORT_FILE} is no report of format {FORMAT}; use the same release")
    return digest


async def attach_report(
    session: AsyncSession, artifacts: ArtifactStore, job: Job, dataset: str, digest: str, now: datetime
) -> None:
    """Make it the newest report on the dataset's version."""
    await keep(session, artifacts, [digest])
    row = await session.get_one(Dataset, dataset, with_for_update=True)
    await note_artifacts(session, row.project, {digest: await asyncio.to_thread(artifacts.size, digest)})
    row.report_digest, row.report_job_id = digest, job.id
    audit.record(session, now, f"dataset/{row.dataset}", f"report on version {row.number}: {digest}")
