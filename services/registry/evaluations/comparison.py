"""Two versions by one suite: what differs, language by language, and whether by more than chance."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy.ext.asyncio import AsyncSession

from services.common.artifacts import ArtifactStore
from services.common.errors import FailedPrecondition
from services.registry.aliases import resolve
from services.registry.database import Database
from services.registry.evaluations.documents import Documents, read_measurement
from services.registry.evaluations.harness import metric_of
from services.registry.evaluations.service import Found, newest
from services.registry.evaluations.statistics import Estimate, Significance, holm, paired, unpaired
from services.registry.evaluations.suites import BENCHMARK, resolve_suite
from services.registry.tables import EvaluationResult, EvaluationSuite


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    language: str
    metric: str
    higher_is_better: bool
    base: EvaluationResult
    result: EvaluationResult
    significance: Significance | None
    p_value_holm: float | None = None

    @property
    def value(self) -> float:
        return self.result.value - self.base.value


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    base: Found
    found: Found
    differences: list[Difference]


class Comparisons:
    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self._database = database
        self._artifacts = artifacts

    async def compare(self, version: str, base: str, suite: str) -> Comparison:
        """`version` against `base`, by their newest evaluations. Raises FailedPrecondition where one has none."""
        async with self._database.read() as session:
            chosen = await resolve_suite(session, suite)
            found = await _evaluated(session, version, chosen)
            against = await _evaluated(session, base, chosen)
        documents, others = await asyncio.gather(self._documents(found), self._documents(against))
        differences = _differences(found, against, documents, others)
        return Comparison(base=against, found=found, differences=_corrected(differences))

    async def _documents(self, found: Found) -> Documents:
        digest = found.evaluation.documents
        if digest is None:
            return {}
        return (await asyncio.to_thread(read_measurement, self._artifacts, digest)).documents


async def _evaluated(session: AsyncSession, name: str, suite: EvaluationSuite) -> Found:
    version = await resolve(session, name)
    if found := await newest(session, version.name, suite.name):
        return found
    raise FailedPrecondition(f"{version.name} has no evaluation by {suite.name}; {how_to_measure(version.name, suite)}")


def how_to_measure(version: str, suite: EvaluationSuite) -> str:
    """The remedy, where a version has no evaluation by a suite."""
    if suite.kind != BENCHMARK:
        return f"make one: `anthesis evaluations run {version} --suite {suite.name}`"
    return f"record what you have measured: `anthesis evaluations record {version} --suite {suite.name} --results FILE`"


def _differences(found: Found, base: Found, documents: Documents, others: Documents) -> list[Difference]:
    better = {metric["name"]: bool(metric["higher_is_better"]) for metric in found.suite.metrics}
    results = {(result.language, result.metric): result for result in found.results}
    return [
        Difference(
            language=other.language,
            metric=other.metric,
            higher_is_better=better[metric_of(found.suite, other.metric)],
            base=other,
            result=result,
            significance=_significance(result, other, documents, others),
        )
        for other in base.results
        if (result := results.get((other.language, other.metric)))
    ]


def _significance(
    result: EvaluationResult, other: EvaluationResult, documents: Documents, others: Documents
) -> Significance | None:
    """Text by text where both kept what each took, else by standard errors."""
    key = (result.language, result.metric)
    mine, theirs = documents.get(key), others.get(key)
    in_pairs = paired(mine, theirs) if mine is not None and theirs is not None else None
    return in_pairs or unpaired(_estimate(result), _estimate(other))


def _estimate(result: EvaluationResult) -> Estimate:
    return Estimate(value=result.value, standard_error=result.standard_error, n=result.n)


def _corrected(differences: Sequence[Difference]) -> list[Difference]:
    tested = [found.significance.p_value for found in differences if found.significance]
    adjusted = iter(holm(tested))
    return [replace(found, p_value_holm=next(adjusted)) if found.significance else found for found in differences]
