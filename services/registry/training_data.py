"""What a job learns from: its datasets, those of its mixture with them, and whether they suit the job."""

import asyncio
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from anthesis.rows import RowsSummary, split_lines

from services.common.artifacts import ArtifactStore
from services.common.errors import InvalidArgument
from services.common.mixture import Mixture, Task, parse_mixture
from services.common.prompt_template import PromptTemplate
from services.registry.database import Database
from services.registry.dataset_names import check_datasets_exist
from services.registry.job_specs import FineTuneSpec, JobSpec, TrainOptions
from services.registry.tables import Dataset

EXAMPLE_FORMATS = ("MULTITASK", "FIELDS", "MIXTURE")
FIRST_ROWS = 100  # whose fields a template may read


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingData:
    datasets: list[Dataset]
    mixture: Mixture

    @property
    def names(self) -> list[str]:
        return [dataset.name for dataset in self.datasets]

    def num_bytes(self, options: TrainOptions) -> int:
        """Of a pass, about: rows beyond the most examples take no part."""
        return sum(self._bytes_of(dataset, options.max_examples_per_dataset) for dataset in self.datasets)

    def _bytes_of(self, dataset: Dataset, job_most: int | None) -> int:
        most = (self.mixture.task_of(dataset.name) or Task()).max_examples or job_most
        if not most or most >= dataset.num_rows:
            return dataset.size_bytes
        return dataset.size_bytes * most // dataset.num_rows


async def read_training_data(database: Database, artifacts: ArtifactStore, spec: JobSpec) -> TrainingData:
    """The datasets that a job names, and those that its mixture does. Raises NotFound, InvalidArgument.

    A version that the job names takes the place of the newest one that the mixture means.
    """
    async with database.read() as session:
        named = await check_datasets_exist(session, spec.datasets)
    _check_formats(named, spec)
    digest = next((dataset.digest for dataset in named if dataset.format == "MIXTURE"), None)
    mixture = await asyncio.to_thread(_read_mixture, artifacts, digest) if digest else Mixture(tasks={})
    there = {name for dataset in named for name in (dataset.name, dataset.dataset)}
    more = []
    if others := [name for name in mixture.tasks if name not in there]:
        async with database.read() as session:
            more = await check_datasets_exist(session, others)
    data = TrainingData(datasets=[*named, *more], mixture=mixture)
    for dataset in data.datasets:
        if task := mixture.task_of(dataset.name):
            await asyncio.to_thread(_check_task, artifacts, dataset, task)  # versions differ
        elif dataset.format == "FIELDS":
            raise InvalidArgument(f"dataset {dataset.name!r} is FIELDS, which need templates; name a MIXTURE with it")
    return data


def _check_formats(datasets: list[Dataset], spec: JobSpec) -> None:
    if len(datasets) > 1 and (blend := next((dataset for dataset in datasets if dataset.format == "BLEND"), None)):
        raise InvalidArgument(f"dataset {blend.name!r} is a BLEND, which goes alone; tokenize the others into it")
    if len(mixtures := [dataset.name for dataset in datasets if dataset.format == "MIXTURE"]) > 1:
        raise InvalidArgument(f"datasets {', '.join(mixtures)} are MIXTUREs; make one of them")
    for dataset in datasets:
        if not isinstance(spec, FineTuneSpec) and dataset.format in EXAMPLE_FORMATS:
            raise InvalidArgument(
                f"dataset {dataset.name!r} is {dataset.format}; pre-training reads TEXT or BLEND only"
            )
        if spec.options.normalize_targets and dataset.format not in EXAMPLE_FORMATS:
            what = f"normalize_targets=true is for examples, and dataset {dataset.name!r} is {dataset.format}"
            raise InvalidArgument(f"{what}; leave it out, or set normalize_targets=false")
        if spec.options.max_examples_per_dataset and dataset.format == "BLEND":
            what = f"max_examples_per_dataset={spec.options.max_examples_per_dataset} is for rows"
            raise InvalidArgument(f"{what}, and dataset {dataset.name!r} is a BLEND; give its corpora weights")


async def check_mixture(database: Database, artifacts: ArtifactStore, digest: str) -> RowsSummary:
    """Rows and languages of a mixture's datasets. Raises NotFound for one, InvalidArgument for what does not fit it."""
    mixture = await asyncio.to_thread(_read_mixture, artifacts, digest)
    async with database.read() as session:
        datasets = await check_datasets_exist(session, list(mixture.tasks))
    for dataset, task in zip(datasets, mixture.tasks.values(), strict=True):
        await asyncio.to_thread(_check_task, artifacts, dataset, task)
    return RowsSummary(
        num_rows=sum(dataset.num_rows for dataset in datasets),
        languages={language for dataset in datasets for language in dataset.languages},
    )


def _read_mixture(artifacts: ArtifactStore, digest: str) -> Mixture:
    try:
        return parse_mixture(b"".join(artifacts.read(digest)).decode())
    except ValueError as error:
        raise InvalidArgument(str(error)) from error


def _check_task(artifacts: ArtifactStore, dataset: Dataset, task: Task) -> None:
    """Raise InvalidArgument unless the task's templates suit the dataset's rows. Blocking."""
    what = f"task {dataset.name!r} is a dataset of {dataset.format}"
    if dataset.format not in ("MULTITASK", "FIELDS"):
        raise InvalidArgument(f"{what}; a mixture takes MULTITASK and FIELDS")
    if dataset.format == "MULTITASK" and task.templates:
        raise InvalidArgument(f"{what}, whose rows need no template; leave templates out, or upload them as FIELDS")
    if dataset.format == "FIELDS" and not task.templates:
        raise InvalidArgument(f"{what}, and has no template; give templates: [{{jinja: '… ||| …'}}]")
    for language in dataset.languages:
        if task.templates and not task.templates_for(language):
            remedy = "add a template for them, or one without languages"
            raise InvalidArgument(f"{what} with rows in {language!r}, for which no template is; {remedy}")
    if dataset.format == "FIELDS":
        check_fields(artifacts, dataset, task.templates)


def check_fields(artifacts: ArtifactStore, dataset: Dataset, templates: Sequence[PromptTemplate]) -> None:
    """Raise InvalidArgument for a template that reads a field which none of the first rows has. Blocking."""
    lines = itertools.islice(split_lines(artifacts.read(dataset.digest)), FIRST_ROWS)
    known = {field for line in lines if line for field in json.loads(line)}
    for template in templates:
        if missing := sorted(template.fields() - known):
            what = f"task {dataset.name!r}: {template.name!r} reads {missing[0]!r}, which no row has"
            raise InvalidArgument(f"{what}; rows have {', '.join(sorted(known))[:500]}")
