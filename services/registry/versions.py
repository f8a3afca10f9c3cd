"""Versions of models: weights that were checked, with their licence, tokenizer and origin."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from bloom.config import BloomConfig
from services.common.artifacts import ArtifactStore
from services.common.errors import InvalidArgument
from services.registry import audit
from services.registry.aliases import resolve
from services.registry.checkpoints import Checkpoint, File, inspect_checkpoint
from services.registry.database import Clock, Database, utc_now
from services.registry.dataset_names import check_datasets_exist
from services.registry.licences.acceptance import find_licences, note_files
from services.registry.licences.carried import carry, read_ancestors
from services.registry.licences.expression import join, normal, parse
from services.registry.models import ensure_model
from services.registry.names import check_model_name
from services.registry.pages import Page, PageRequest, read_page
from services.registry.projects.artifacts import note_artifacts
from services.registry.projects.quotas import check_stored_bytes
from services.registry.references import keep
from services.registry.search import VersionQuery
from services.registry.tables import READY, Model, ModelVersion
from services.registry.tags import check_tags
from services.registry.version_states import no_model

SOURCES = ("import", "job")
SHAPE = ("vocab_size", "hidden_size", "n_layer", "n_head")


@dataclass(frozen=True, kw_only=True, slots=True)
class NewVersion:
    model: str
    tokenizer_digest: str
    files: tuple[File, ...]
    licence: str = ""  # "": the parents', else the model's
    parent: str = ""  # anything `resolve` takes
    other_parents: list[str] = field(default_factory=list)  # of a merge
    datasets: list[str] = field(default_factory=list)
    source: str = "import"
    job_id: str | None = None
    tags: list[str] = field(default_factory=list)
    created_by: str = ""  # principal

    @property
    def digests(self) -> list[str]:
        """Of all artifacts that it needs."""
        return [self.tokenizer_digest, *(file.digest for file in self.files)]


async def add_version(
    session: AsyncSession, artifacts: ArtifactStore, new: NewVersion, checkpoint: Checkpoint, now: datetime
) -> ModelVersion:
    """Register `checkpoint`, and what its licences ask to go along, under the model's next number.

    The model is made when missing. Raises InvalidArgument when a licence would be lost or the shape is not the
    catalogue's, FailedPrecondition for a licence whose text is not here.
    """
    parents = await _resolve_parents(session, new)
    existing = await session.get(Model, check_model_name(new.model))
    licence = await decide_licence(session, new.model, existing, new.licence, parents)
    datasets = [dataset.name for dataset in await check_datasets_exist(session, new.datasets)]
    base = parents[0] if parents else None
    model = await ensure_model(session, new.model, licence, base, now, created_by=new.created_by)
    _check_shape(model, checkpoint.config)
    numbers = select(func.max(ModelVersion.number)).where(ModelVersion.model == model.name)
    model.latest_version = (await session.scalar(numbers) or 0) + 1  # above those of deleted ones
    model.config_json = model.config_json or checkpoint.config_json
    model.parameters = model.parameters or checkpoint.config.parameters
    version = ModelVersion(
        name=f"{model.name}@{model.latest_version}",
        model=model.name,
        project=model.project,
        number=model.latest_version,
        licence=licence,
        tokenizer_digest=new.tokenizer_digest,
        files=checkpoint.file_rows,
        config_json=checkpoint.config_json,
        parameters=checkpoint.config.parameters,
        parent=parents[0].name if parents else None,
        other_parents=[parent.name for parent in parents[1:]],
        job_id=new.job_id,
        datasets=datasets,
        source=new.source,
        create_time=now,
        state=READY,
        tags=check_tags(new.tags),
        created_by=new.created_by,
    )
    version.files = await carry(session, artifacts, version)
    version.size_bytes = sum(file["size_bytes"] for file in version.files)
    await note_files(session, licence, version.files)
    sizes = {new.tokenizer_digest: 0}  # it counts for those who sent it, or had it trained
    sizes |= {file["digest"]: file["size_bytes"] for file in version.files}
    await check_stored_bytes(session, sizes)
    await note_artifacts(session, version.project, sizes)
    session.add(version)
    audit.record(session, now, f"version/{version.name}", f"{licence}, by {new.job_id or new.source}")
    await session.flush()
    return version


async def _resolve_parents(session: AsyncSession, new: NewVersion) -> list[ModelVersion]:
    """Raises NotFound, InvalidArgument for one named twice and for others without the first."""
    if new.other_parents and not new.parent:
        raise InvalidArgument(f"other_parents={new.other_parents} without parent; name the first one there")
    names = [new.parent, *new.other_parents] if new.parent else []
    parents = [await resolve(session, name, held=True) for name in names]
    if len({parent.name for parent in parents}) != len(parents):
        raise InvalidArgument(f"parents {', '.join(names)} name a version twice; name each once")
    return parents


async def decide_licence(
    session: AsyncSession, model_name: str, model: Model | None, licence: str, parents: Sequence[ModelVersion] = ()
) -> str:
    """The licence of a new version: all of the parents', none of which is ever lost, and what `licence` adds.

    model: the one of that name, if there is one. Without parents its licence, else `licence`. Raises InvalidArgument
    when `licence` or the model contradicts it, FailedPrecondition for a licence whose text is not here.
    """
    inherited = {known for parent in parents for known in parse(parent.licence)}
    if not parents and model:
        inherited = set(parse(model.licence))
    decided = normal(licence or join(inherited))
    await find_licences(session, decided)
    origin = f"its parent {' and '.join(parent.name for parent in parents)}" if parents else f"model {model_name!r}"
    if not inherited <= set(parse(decided)):
        remedy = f"leave it empty, or add to it: {join(inherited | set(parse(decided)))!r}"
        raise InvalidArgument(f"licence {licence!r} would replace {join(inherited)!r} of {origin}; {remedy}")
    if model and normal(model.licence) != decided:
        raise InvalidArgument(
            f"model {model_name!r} is under {model.licence!r}, the new version under {decided!r} of {origin}; "
            "choose another model name"
        )
    return decided


def _check_shape(model: Model, config: BloomConfig) -> None:
    if not model.in_catalogue:
        return
    published = BloomConfig.from_hf(json.loads(model.config_json))
    for key in SHAPE:
        if getattr(config, key) != getattr(published, key):
            raise InvalidArgument(
                f"{key}={getattr(config, key)} in config.json, but {model.name} was published with "
                f"{getattr(published, key)}; import the checkpoint under a name of its own"
            )


class Versions:
    def __init__(self, database: Database, artifacts: ArtifactStore, clock: Clock = utc_now) -> None:
        self._database = database
        self._artifacts = artifacts
        self._clock = clock

    async def create(self, new: NewVersion) -> ModelVersion:
        """Check the files (see `inspect_checkpoint`) and register them. Raises InvalidArgument, NotFound."""
        check_model_name(new.model)
        if new.source not in SOURCES:
            raise InvalidArgument(f"source {new.source!r} is not known; use {' or '.join(SOURCES)}")
        checkpoint = await asyncio.to_thread(inspect_checkpoint, self._artifacts, new.files, new.tokenizer_digest)
        async with self._database.write() as session:
            await keep(session, self._artifacts, new.digests)
            return await add_version(session, self._artifacts, new, checkpoint, self._clock())

    async def list_versions(
        self, model: str, page: PageRequest, query: VersionQuery | None = None
    ) -> Page[ModelVersion]:
        """Of one model, or of all when `model` is empty; newest first unless `query` says so. Raises NotFound."""
        query = query or VersionQuery()
        asked = query.select()
        async with self._database.read() as session:
            if model:
                if await session.get(Model, model) is None:
                    raise no_model(model)
                asked = asked.where(ModelVersion.model == model)
            scope, newest = f"{query.scope} of {model}", not query.oldest_first
            return await read_page(
                session, asked, ModelVersion.id, page, scope=scope, newest_first=newest, keys_first=bool(query.language)
            )

    async def lineage(self, name: str) -> list[ModelVersion]:
        """The ancestors of the version that `name` means, nearest first. Raises NotFound."""
        async with self._database.read() as session:
            return await read_ancestors(session, await resolve(session, name))
