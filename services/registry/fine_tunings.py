"""Jobs that OpenAI's fine-tuning API submits: what it was asked for, kept to be said again, and a file of metrics."""

import asyncio
import csv
import io
import json
import math
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.artifacts import ArtifactStore
from services.common.errors import InvalidArgument
from services.registry.files import RESULTS
from services.registry.job_progress import Progress
from services.registry.projects.artifacts import note_artifacts
from services.registry.tables import File, Job, JobEvent

FineTuning = dict[str, Any]  # the fields of FineTuning
MAX_BYTES = 64 << 10  # as JSON; OpenAI's most metadata are under 10 kB
COLUMNS = ("step", "train_loss", "learning_rate", "grad_norm", "tokens_seen", "valid_bits_per_byte")


def check_fine_tuning(fine_tuning: FineTuning) -> None:
    """Raises InvalidArgument."""
    multiplier = fine_tuning["learning_rate_multiplier"]
    if not math.isfinite(multiplier):  # which JSON cannot hold
        raise InvalidArgument(f"fine_tuning.learning_rate_multiplier is {multiplier}; send a number")
    size = len(json.dumps(fine_tuning))
    if size > MAX_BYTES:
        raise InvalidArgument(f"fine_tuning has {size} bytes; send at most {MAX_BYTES}")


async def add_metrics_file(session: AsyncSession, artifacts: ArtifactStore, job: Job, now: datetime) -> None:
    """A CSV of the job's steps, for whoever submitted it. Call it where `keep` was called."""
    query = select(JobEvent.body).where(JobEvent.job_id == job.id, JobEvent.kind == "progress")
    table = _write(await session.scalars(query.order_by(JobEvent.sequence))).encode()
    digest = await asyncio.to_thread(artifacts.write_bytes, table)
    if job.project:
        await note_artifacts(session, job.project, {digest: len(table)})
    session.add(
        File(
            id="file-" + job.id.removeprefix("job-"),
            filename="step_metrics.csv",
            purpose=RESULTS,
            digest=digest,
            size_bytes=len(table),
            format="",
            num_rows=0,
            longest_row_bytes=0,
            created_by=job.created_by,
            create_time=now,
        )
    )


def _write(reports: Iterable[Progress]) -> str:
    """A row for each step; of one that was done twice, after a restart, the last."""
    steps = {report["step"]: report for report in reports}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for step, report in sorted(steps.items()):
        figures = (report.get(name, "") for name in ("loss", *COLUMNS[2:5]))
        writer.writerow((step, *figures, _bits_per_byte(report)))
    return text.getvalue()


def _bits_per_byte(report: Progress) -> float | str:
    """Over all bytes of validation; "" where nothing was validated."""
    losses = report.get("validation") or ()
    num_bytes = sum(loss["num_bytes"] for loss in losses)
    return sum(float(loss["bits_per_byte"]) * loss["num_bytes"] for loss in losses) / num_bytes if num_bytes else ""
