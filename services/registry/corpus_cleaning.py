"""Clean datasets made by jobs: what is asked for, and what is kept of it. The trainer cleans (docs/cleaning.md)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from anthesis.rows import RowsSummary, check_rows
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.artifacts import ArtifactStore
from services.common.errors import InvalidArgument
from services.registry.checkpoints import File
from services.registry.database import Database
from services.registry.dataset_names import check_datasets_exist, find_newest
from services.registry.datasets import add_version
from services.registry.job_specs import CleanCorpusSpec
from services.registry.names import check_name
from services.registry.projects.artifacts import note_artifacts
from services.registry.references import keep
from services.registry.tables import Job

ROWS_FILE, REPORT_FILE = "rows.jsonl", "report.json"
FORMAT = "TEXT"
MAX_CODE, MAX_KINDS = 40, 20  # of a language, in characters; of personal information


@dataclass(frozen=True, slots=True)
class Cleaned:
    digest: str  # of the rows
    summary: RowsSummary
    size_bytes: int
    report_digest: str
    report_bytes: int


async def resolve_cleaning(database: Database, spec: CleanCorpusSpec) -> CleanCorpusSpec:
    """The spec with its datasets found and fixed. Raises NotFound, InvalidArgument naming the parameter.

    Which languages and kinds of personal information there are, the trainer knows: an unknown one fails the job.
    """
    check_name("dataset", spec.output_dataset)
    if not spec.datasets:
        raise InvalidArgument("datasets is empty; name at least one dataset")
    if len(spec.default_language) > MAX_CODE:
        raise InvalidArgument(f"default_language has {len(spec.default_language)} characters; give a code such as 'sw'")
    if len(spec.personal_information) > MAX_KINDS or any(len(kind) > MAX_CODE for kind in spec.personal_information):
        raise InvalidArgument("personal_information names no kind that there is; give some such as EMAIL, or none")
    async with database.read() as session:
        datasets = await check_datasets_exist(session, spec.datasets)
        output = await find_newest(session, spec.output_dataset)
    for row in (*datasets, *([output] if output else ())):
        if row.format != FORMAT:
            raise InvalidArgument(f"dataset {row.name!r} is {row.format}; cleaning is of {FORMAT} rows, name another")
    return replace(spec, datasets=[row.name for row in datasets])


def check_cleaned(artifacts: ArtifactStore, files: Sequence[File]) -> Cleaned:
    """What is among a job's files. Raises InvalidArgument unless it is rows and a report. Blocking."""
    if [file.path for file in files] != [ROWS_FILE, REPORT_FILE]:
        raise InvalidArgument(f"cleaning ends with {ROWS_FILE} and {REPORT_FILE}, not {len(files)} other files")
    rows, report = files
    try:
        summary = check_rows(artifacts.read(rows.digest), FORMAT)
    except ValueError as error:
        raise InvalidArgument(f"{ROWS_FILE}: {error}") from None
    return Cleaned(rows.digest, summary, artifacts.size(rows.digest), report.digest, artifacts.size(report.digest))


async def attach_cleaned(
    session: AsyncSession, artifacts: ArtifactStore, job: Job, output: str, cleaned: Cleaned, now: datetime
) -> None:
    """Make the rows the next version of `output`."""
    await keep(session, artifacts, [cleaned.digest, cleaned.report_digest])
    await note_artifacts(session, job.project, {cleaned.report_digest: cleaned.report_bytes})
    row = {
        "dataset": output,
        "format": FORMAT,
        "digest": cleaned.digest,
        "num_rows": cleaned.summary.num_rows,
        "size_bytes": cleaned.size_bytes,
        "languages": sorted(cleaned.summary.languages),
        "created_by": job.created_by,
        "create_time": now,
    }
    version = await add_version(session, row)
    job.made = {"dataset": version.name, "report_digest": cleaned.report_digest}
