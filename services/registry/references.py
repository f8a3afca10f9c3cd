"""Which artifacts are needed, read from the tables, and how nothing is collected that is just being asked for.

Nothing counts references: a counter would drift from the tables the first time something dies between the two, or
somebody forgets it; the tables cannot be wrong about themselves.

Whoever writes a reference calls `keep` in the transaction that writes it; the collector looks and deletes in one that
called `exclude`. So the one waits for the other: either the collector sees the reference, or `keep` that a file is
gone.
"""

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import Function, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.artifacts import ArtifactStore
from services.registry.tables import (
    ENDED,
    PURGED,
    READY,
    Dataset,
    Evaluation,
    EvaluationSuite,
    File,
    Job,
    ModelVersion,
    Upload,
)

LOCK = 0x616E6763  # PostgreSQL's advisory lock; on SQLite writers wait for each other anyway
References = dict[str, list[str]]  # digest -> who needs it, for people
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


async def keep(session: AsyncSession, artifacts: ArtifactStore, digests: Iterable[str]) -> None:
    """Until the transaction ends nothing is collected, and all of `digests` are there. Raises NotFound.

    Call it before rows are locked.
    """
    await hold_off_collector(session)
    await asyncio.to_thread(_check_all, artifacts, frozenset(digests))


def _check_all(artifacts: ArtifactStore, digests: frozenset[str]) -> None:
    for digest in sorted(digests):
        artifacts.size(digest)


async def hold_off_collector(session: AsyncSession) -> None:
    """Until the writing transaction ends nothing is collected."""
    await _lock(session, func.pg_advisory_xact_lock_shared(LOCK))


async def exclude(session: AsyncSession) -> None:
    """Until the writing transaction ends nobody else is in one that called `keep`."""
    await _lock(session, func.pg_advisory_xact_lock(LOCK))


async def _lock(session: AsyncSession, function: Function[None]) -> None:
    await session.connection()  # the transaction begins here, not at its first statement: on SQLite that is the lock
    if session.get_bind().dialect.name == "postgresql":
        await session.execute(select(function))


async def read_references(session: AsyncSession, expired_at: datetime | None = None) -> References:
    """What versions, datasets, suites, evaluations, files and jobs need.

    A job needs what it has made, and until it ends what it names. Deleted versions need theirs until they are purged;
    `expired_at`: as if those had been purged that may be by then.
    """
    needed: References = defaultdict(list)
    versions = select(ModelVersion.name, ModelVersion.files, ModelVersion.tokenizer_digest)
    versions = versions.where(ModelVersion.state != PURGED)
    if expired_at:
        versions = versions.where(or_(ModelVersion.state == READY, ModelVersion.expire_time > expired_at))
    for name, files, tokenizer in await session.execute(versions):
        for file in files:
            needed[file["digest"]].append(f"{name}/{file['path']}")
        needed[tokenizer].append(f"{name}'s tokenizer")
    for name, digest, report in await session.execute(select(Dataset.name, Dataset.digest, Dataset.report_digest)):
        needed[digest].append(f"dataset {name}")
        if report:
            needed[report].append(f"report on dataset {name}")
    measured = select(Evaluation.id, Evaluation.documents).where(Evaluation.documents.is_not(None))
    for evaluation, documents in await session.execute(measured):
        needed[str(documents)].append(f"evaluation {evaluation}")
    for suite, datasets in await session.execute(select(EvaluationSuite.name, EvaluationSuite.datasets)):
        for dataset in datasets:
            needed[dataset["digest"]].append(f"suite {suite}")
    for file_id, digest in await session.execute(select(File.id, File.digest)):
        needed[digest].append(f"file {file_id}")
    for job_id, made in await session.execute(select(Job.id, Job.made).where(Job.made.is_not(None))):
        for digest in _DIGEST.findall(json.dumps(made)):
            needed[digest].append(f"job {job_id}")
    for job_id, spec in await session.execute(select(Job.id, Job.spec).where(Job.state.not_in(ENDED))):
        for digest in _DIGEST.findall(json.dumps(spec)):  # whatever its kind of job names
            needed[digest].append(f"job {job_id}")
    return needed


async def read_uploading(session: AsyncSession) -> set[str]:
    """Digests of what is being sent, or was lately, and the staged files, "incoming/<upload>"."""
    rows = list(await session.execute(select(Upload.id, Upload.digest)))
    return {digest for _, digest in rows} | {f"incoming/{upload_id}" for upload_id, _ in rows}
