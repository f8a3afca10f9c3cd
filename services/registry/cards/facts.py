"""What the registry knows of a model or a version that a card tells."""

from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.registry.cards.evaluations import Evaluation, read_evaluations
from services.registry.licences.acceptance import find_licences
from services.registry.licences.carried import parents_of, read_ancestors
from services.registry.tables import Dataset, Job, Licence, Model, ModelVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    model: Model
    licences: list[Licence]
    version: ModelVersion | None = None  # None: no weights yet
    job: Job | None = None
    datasets: list[Dataset] = field(default_factory=list)
    ancestors: list[ModelVersion] = field(default_factory=list)  # nearest first
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def languages(self) -> list[str]:
        """The model's; else those of the data."""
        return self.model.languages or sorted({name for data in self.datasets for name in data.languages})

    @property
    def base_models(self) -> list[str]:
        if self.version:
            return list(dict.fromkeys(parent.rpartition("@")[0] for parent in parents_of(self.version)))
        return [self.model.base_model] if self.model.base_model else []

    @property
    def tags(self) -> list[str]:
        return sorted({*self.model.tags, *(self.version.tags if self.version else ())})


async def read_facts(session: AsyncSession, model: Model, version: ModelVersion | None) -> Facts:
    if version is None:
        return Facts(model=model, licences=await find_licences(session, model.licence))
    job = await session.get(Job, version.job_id) if version.job_id else None
    rows = await session.scalars(select(Dataset).where(Dataset.name.in_(version.datasets)).order_by(Dataset.name))
    return Facts(
        model=model,
        licences=await find_licences(session, version.licence),
        version=version,
        job=job,
        datasets=list(rows),
        ancestors=await read_ancestors(session, version),
        evaluations=await read_evaluations(session, version, job),
    )
