"""What a card says of how good a version is: one function, to which every source of figures adds its rows."""

import math
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from services.registry.tables import Job, ModelVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    dataset: str
    language: str  # "": of all, or not said
    metric: str  # "bits_per_byte"
    value: float
    source: str  # where it was measured, for people


async def read_evaluations(session: AsyncSession, version: ModelVersion, job: Job | None) -> list[Evaluation]:
    """Of one version, made by `job`: so far its losses on held-out rows. Further sources read from `session`."""
    return _held_out(job) if job else []


def _held_out(job: Job) -> list[Evaluation]:
    progress = job.progress or {}
    step = progress.get("validation_step", 0)
    rows = [
        Evaluation(
            dataset=loss["dataset"],
            language=loss["language"],
            metric="bits_per_byte",
            value=float(loss["bits_per_byte"]),
            source=f"held-out rows, after step {step} of {job.id}",
        )
        for loss in progress.get("validation", ())
    ]
    return [row for row in rows if math.isfinite(row.value)]
