"""What tests of evaluations do again and again: suites, versions that are measured, gates."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.registry.evaluations.comparison import Comparisons
from services.registry.evaluations.gates import Gates, NewGate
from services.registry.evaluations.service import Evaluations
from services.registry.evaluations.suites import BITS_PER_BYTE, NewSuite, Suites
from services.registry.job_specs import EvaluateSpec
from services.registry.jobs import NewJob
from services.registry.leases import Measured
from services.registry.tables import AliasGate, EvaluationSuite, Job
from tests.support.registry_data import text_rows

Texts = Sequence[tuple[float, int]]  # bits and bytes of each


@dataclass(kw_only=True)
class Measuring:
    registry: Any  # tests/unit/registry/conftest.py
    suites: Suites
    evaluations: Evaluations
    comparisons: Comparisons
    gates: Gates

    async def add_suite(self, family: str = "held-out", **changes: Any) -> EvaluationSuite:
        values = {"kind": BITS_PER_BYTE, "datasets": ["held-out"], "created_by": "ada"} | changes
        return await self.suites.create(NewSuite(family=family, **values))

    async def add_rows(self, name: str = "held-out", num_rows: int = 8) -> None:
        digest = self.registry.artifacts.write_bytes(text_rows(num_rows))
        await self.registry.datasets.create(name, "TEXT", digest)

    async def submit(self, version: str, suite: str = "held-out") -> Job:
        new = NewJob(spec=EvaluateSpec(version=version, suite=suite), created_by="ada")
        return await self.registry.jobs.create(new)

    def documents(self, **by_language: Texts) -> str:
        return self.registry.artifacts.write_bytes(json.dumps(by_language).encode())

    async def measure(self, version: str, suite: str = "held-out", **by_language: Texts) -> Job:
        """A job measures `version`; what each text took is given by language."""
        self.registry.clock.advance(1)
        job = await self.submit(version, suite)
        await self.registry.leases.acquire(job.id, "w1")
        return await self.registry.leases.finish(job.id, 1, Measured(self.documents(**by_language)))

    async def set_gate(self, alias: str = "flower", percent: float = 1.0, **changes: Any) -> AliasGate:
        values = {"suite": "held-out", "created_by": "ada"} | changes
        return await self.gates.set(NewGate(alias=alias, max_regression_percent=percent, **values))


def texts(*bits_per_byte: float, num_bytes: int = 100) -> list[tuple[float, int]]:
    """Texts of equal length."""
    return [(value * num_bytes, num_bytes) for value in bits_per_byte]


async def measuring_registry(registry: Any) -> Measuring:
    """With `seedling@1` and `seedling@2`, and the suite `held-out@1`, of texts in French and Swahili."""
    made = Measuring(
        registry=registry,
        suites=Suites(registry.database, registry.artifacts, registry.clock),
        evaluations=Evaluations(registry.database, registry.clock),
        comparisons=Comparisons(registry.database, registry.artifacts),
        gates=Gates(registry.database, registry.clock),
    )
    for _ in range(2):
        await registry.add_version()
    await made.add_rows()
    await made.add_suite()
    return made
