"""Rows to examples: inputs and targets, conversations, and fields that a mixture's templates render."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from anthesis.messages import check_messages
from anthesis.rows import COMPLETION

from services.common.artifacts import ArtifactStore
from services.common.chat import ChatFormat, Part
from services.common.mixture import Mixture, Task, parse_mixture
from services.trainer.config import DatasetSpec, RunSpec
from services.trainer.failure import JobFailure


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleMaker:
    """How the rows of one dataset become examples."""

    task: Task = field(default_factory=Task)
    separator: str = " "
    chat: ChatFormat = field(default_factory=ChatFormat)

    def parts(self, row: dict[str, Any], draw: int) -> list[Part] | None:
        """An example's text; None: the template leaves the row out. draw: chooses among templates.

        Raises ValueError saying why the row makes no example.
        """
        if self.task.templates:
            return self._rendered(row, draw)
        if "messages" in row:
            if reason := check_messages(row["messages"]):
                raise ValueError(f"is no conversation: {reason}")
            return self.chat.parts(row["messages"])
        inputs, targets = COMPLETION if "prompt" in row else ("inputs", "targets")
        for key in (inputs, targets):
            if not isinstance(row.get(key), str):
                raise ValueError(f"has no string {key!r}")
        return [(row[inputs], False), (row[targets], True)]

    def _rendered(self, row: dict[str, Any], draw: int) -> list[Part] | None:
        language = row.get("language") or ""
        templates = self.task.templates_for(language)
        if not templates:
            raise ValueError(f"has language {language!r}, for which no template is; add one, or one without languages")
        found = templates[draw % len(templates)].render(row)
        return found and [(found[0], False), (self.separator + found[1], True)]


def example_makers(spec: RunSpec, store: ArtifactStore) -> dict[str, ExampleMaker]:
    """Of each of the job's datasets of rows, by name, as its mixture has it. Raises JobFailure."""
    mixture = _mixture(spec.datasets, store)
    makers = {}
    for dataset in spec.datasets:
        if dataset.format == "mixture":
            continue
        task = mixture.task_of(dataset.name) or Task()
        if dataset.format == "fields" and not task.templates:
            raise _bad(f"dataset {dataset.name!r} has fields and no template; give some in a mixture")
        task = replace(task, max_examples=task.max_examples or spec.config.max_examples_per_dataset)
        makers[dataset.name] = ExampleMaker(task=task, separator=mixture.separator, chat=mixture.chat)
    return makers


def check_normalizable(spec: RunSpec) -> None:
    """Raise JobFailure where targets are to be normalised and are not those of examples."""
    text = next((dataset for dataset in spec.datasets if dataset.format in ("text", "blend")), None)
    if spec.config.normalize_targets and text:
        what = f"normalize_targets=true is for examples, and dataset {text.name!r} is {text.format}"
        raise JobFailure("BAD_CONFIG", f"{what}; leave it out, or set normalize_targets=false", "normalize_targets")


def _mixture(datasets: Sequence[DatasetSpec], store: ArtifactStore) -> Mixture:
    """The job's, or one of no tasks."""
    found = [dataset for dataset in datasets if dataset.format == "mixture"]
    if len(found) > 1:
        raise _bad(f"the job has the mixtures {', '.join(dataset.name for dataset in found)}; make one of them")
    if not found:
        return Mixture(tasks={})
    try:
        return parse_mixture(store.local_path(found[0].digest).read_text(errors="replace"))
    except ValueError as error:
        raise _bad(f"dataset {found[0].name!r}: {error}") from error


def _bad(what: str) -> JobFailure:
    return JobFailure("BAD_DATA", what, "datasets")
