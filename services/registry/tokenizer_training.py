"""Tokenizers made by jobs: what is asked for, and what is kept of it."""

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncSession

from services.common.artifacts import ArtifactStore
from services.common.errors import InvalidArgument
from services.registry.checkpoints import File
from services.registry.database import Database
from services.registry.dataset_names import check_datasets_exist
from services.registry.job_specs import Range, TrainTokenizerSpec
from services.registry.projects.artifacts import note_artifacts
from services.registry.references import keep
from services.registry.tables import Job
from services.registry.tokenizers import vocabulary_size

TOKENIZER_FILE = "tokenizer.json"
FORMATS = ("TEXT", "MULTITASK")  # whose rows are texts as they stand
VOCAB_SIZES, MIN_FREQUENCIES = Range("[512, 1000000]"), Range("[0, 1000000]")


async def resolve_corpus(database: Database, spec: TrainTokenizerSpec) -> TrainTokenizerSpec:
    """The spec with its datasets found and fixed. Raises NotFound, InvalidArgument naming the parameter."""
    for name, allowed in (("vocab_size", VOCAB_SIZES), ("min_frequency", MIN_FREQUENCIES)):
        if getattr(spec, name) not in allowed:
            value = getattr(spec, name)
            raise InvalidArgument(f"{name}={value} is out of range; choose a value in {allowed.text}")
    if not spec.datasets:
        raise InvalidArgument("datasets is empty; name at least one dataset")
    async with database.read() as session:
        datasets = await check_datasets_exist(session, spec.datasets)
    for row in datasets:
        if row.format not in FORMATS:
            raise InvalidArgument(f"dataset {row.name!r} is {row.format}; name datasets of {' or '.join(FORMATS)} rows")
    return replace(spec, datasets=[row.name for row in datasets])


def check_tokenizer(artifacts: ArtifactStore, files: Sequence[File]) -> str:
    """The digest of the tokenizer among a job's files. Raises InvalidArgument unless it is one. Blocking."""
    if [file.path for file in files] != [TOKENIZER_FILE]:
        raise InvalidArgument(f"training a tokenizer ends with one file, {TOKENIZER_FILE}, not {len(files)} others")
    vocabulary_size(artifacts, files[0].digest)
    return files[0].digest


async def attach_tokenizer(session: AsyncSession, artifacts: ArtifactStore, job: Job, digest: str) -> None:
    """Make it what the job has made, which is kept as long as the job is."""
    await keep(session, artifacts, [digest])
    await note_artifacts(session, job.project, {digest: artifacts.size(digest)})
    job.made = {"tokenizer_digest": digest}
