"""The job that made a version, once more: from the version's training.json (services/trainer/provenance.py)."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from services.common.artifacts import ArtifactStore
from services.common.errors import FailedPrecondition
from services.registry.aliases import resolve
from services.registry.database import Database
from services.registry.job_specs import FineTuneSpec, JobSpec, LoraOptions, PretrainSpec, TrainOptions
from services.registry.jobs import Jobs, NewJob
from services.registry.tables import Dataset, Job, ModelVersion

TRAINING_FILE = "training.json"
MAX_BYTES = 16 << 20
FORMAT = 1
SUFFIX = "-reproduced"  # of the model that receives the version, so that the first one's versions stay as they are
_EITHER = ({"steps", "epochs"}, {"warmup_steps", "warmup_samples"})  # one of each pair is set


@dataclass(frozen=True, kw_only=True, slots=True)
class NewReproduction:
    version: str  # anything `resolve` takes
    created_by: str
    output_model: str = ""  # "": the version's with SUFFIX
    changes: TrainOptions = field(default_factory=TrainOptions)  # over the recipe
    idempotency_key: str = ""


class Reproductions:
    def __init__(self, database: Database, artifacts: ArtifactStore, jobs: Jobs) -> None:
        self._database = database
        self._artifacts = artifacts
        self._jobs = jobs

    async def create(self, new: NewReproduction) -> Job:
        """Submit the job. Raises FailedPrecondition where it cannot be run again, and what Jobs.create does."""
        async with self._database.read() as session:
            version = await resolve(session, new.version)
            record = await asyncio.to_thread(read_record, self._artifacts, version)
            _check_began_by_itself(version, record)
            datasets = await self._find_datasets(session, version, record["datasets"])
        spec = _spec(version, record, datasets, new.output_model or f"{version.model}{SUFFIX}", new.changes)
        return await self._jobs.create(
            NewJob(
                spec=spec,
                created_by=new.created_by,
                idempotency_key=new.idempotency_key,
            )
        )

    async def _find_datasets(
        self, session: AsyncSession, version: ModelVersion, datasets: Sequence[dict[str, str]]
    ) -> list[str]:
        """The versions that have the content, whatever they are called: records of older releases name no version."""
        names = []
        for dataset in datasets:
            name, digest = dataset["name"], dataset["digest"]
            query = select(Dataset).where(Dataset.dataset == name.partition("@")[0]).order_by(Dataset.number)
            versions = list(await session.scalars(query))
            same = [found.name for found in versions if found.digest == digest]
            is_here = await asyncio.to_thread(self._artifacts.exists, digest)
            if same and is_here:
                names.append(name if name in same else same[0])
                continue
            what = "has other content now" if versions and not same else "is gone"
            remedy = f"upload the file with digest {digest} under that name again"
            raise FailedPrecondition(f"dataset {name!r}, which {version.name} was trained on, {what}; {remedy}")
        return names


def read_record(artifacts: ArtifactStore, version: ModelVersion) -> dict[str, Any]:
    """The content of a version's training.json. Raises FailedPrecondition where there is none of this format."""
    digest = next((file["digest"] for file in version.files if file["path"] == TRAINING_FILE), None)
    if digest is None:
        made = "was imported" if version.source == "import" else "was trained by an older release"
        raise FailedPrecondition(f"{version.name} {made}: it has no {TRAINING_FILE} to run it again by; name another")
    if artifacts.size(digest) <= MAX_BYTES:
        try:
            record = json.loads(artifacts.read_bytes(digest))
            if record["format"] == FORMAT and {"datasets", "recipe", "lora", "base", "model_config"} <= record.keys():
                return dict(record)
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            pass
    raise FailedPrecondition(f"{TRAINING_FILE} of {version.name} is of another format; use the release that wrote it")


def _check_began_by_itself(version: ModelVersion, record: dict[str, Any]) -> None:
    if source := record.get("from_checkpoint"):
        remedy = f"reproduce what {source} made, or submit the job with from_checkpoint"
        raise FailedPrecondition(f"{version.name} was trained from a checkpoint of {source}; {remedy}")


def _spec(
    version: ModelVersion, record: dict[str, Any], datasets: list[str], output_model: str, changes: TrainOptions
) -> JobSpec:
    options = _options(version, record["recipe"], changes)
    if not record["base"]:
        return PretrainSpec(
            output_model=output_model,
            licence=version.licence,
            tokenizer_digest=version.tokenizer_digest,
            datasets=datasets,
            config=record["model_config"],
            options=options,
        )
    lora = LoraOptions(**record["lora"]) if record["lora"] else None
    return FineTuneSpec(output_model=output_model, base=record["base"], datasets=datasets, options=options, lora=lora)


def _options(version: ModelVersion, recipe: dict[str, Any], changes: TrainOptions) -> TrainOptions:
    known = {item.name for item in fields(TrainOptions)}
    if unknown := sorted(recipe.keys() - known):
        raise FailedPrecondition(f"{version.name} was trained with {unknown[0]}; use the release that knows it")
    changed = {name: value for name, value in asdict(changes).items() if value != getattr(TrainOptions(), name)}
    # Validation has no part in the weights, and its datasets none in the record.
    replaced = {name for pair in _EITHER if pair & changed.keys() for name in pair} | {"validate_every_steps"}
    return TrainOptions(**{name: value for name, value in recipe.items() if name not in replaced} | changed)
