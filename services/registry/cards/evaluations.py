"""What a card says of how good a version is: one function, to which every source of figures adds its rows."""

import math
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.registry import tables
from services.registry.tables import EvaluationResult, Job, ModelVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    dataset: str
    language: str  # "": of all, or not said
    metric: str  # "bits_per_byte"
    value: float
    source: str  # where it was measured, for people


async def read_evaluations(session: AsyncSession, version: ModelVersion, job: Job | None) -> list[Evaluation]:
    """Of one version, made by `job`: its losses on held-out rows, then the newest results by each suite."""
    return [*(_held_out(job) if job else []), *await _by_suites(session, version)]


async def _by_suites(session: AsyncSession, version: ModelVersion) -> list[Evaluation]:
    measured = tables.Evaluation
    newest = select(func.max(measured.id)).where(measured.version == version.name).group_by(measured.suite)
    query = (
        select(measured, EvaluationResult)
        .join(EvaluationResult, EvaluationResult.evaluation == measured.id)
        .where(measured.id.in_(newest))
        .order_by(measured.suite, EvaluationResult.language, EvaluationResult.metric)
    )
    return [
        Evaluation(
            dataset=evaluation.suite,
            language=result.language,
            metric=result.metric,
            value=result.value,
            source=f"by {evaluation.job_id}" if evaluation.job_id else f"reported by {evaluation.created_by}",
        )
        for evaluation, result in await session.execute(query)
    ]


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
