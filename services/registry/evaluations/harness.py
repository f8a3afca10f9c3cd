"""Suites of lm-evaluation-harness: what they may ask. The harness itself runs in jobs alone (services/trainer/harness).

A task is one of the harness's own, by its name, or a dataset's rows with a template. Nothing else of a task can be
said: no path, no URL, no code.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from services.common.artifacts import ArtifactStore
from services.common.errors import InvalidArgument
from services.common.prompt_template import PromptTemplate
from services.registry.job_specs import Range
from services.registry.tables import Dataset, EvaluationSuite
from services.registry.training_data import check_fields

LM_EVAL = "LM_EVAL"
FORMATS = ("FIELDS", "MULTITASK")  # rows that templates render
DEFAULT_METRICS = {"acc": True, "acc_norm": True, "exact_match": True, "bits_per_byte": False}  # higher is better
MAX_TASKS, MAX_TEMPLATE, MAX_LANGUAGE = 100, 20_000, 100
FEWSHOT, LIMITS = Range("[0, 64]"), Range("[0, 10000000]")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessTask:
    name: str
    language: str = ""
    dataset: str = ""  # "": a task of the harness
    jinja: str = ""
    answer_choices: str = ""

    @property
    def template(self) -> PromptTemplate:
        """Of a dataset's rows. Raises InvalidArgument."""
        try:
            return PromptTemplate(name=self.name, jinja=self.jinja, answer_choices=self.answer_choices)
        except ValueError as error:
            raise InvalidArgument(f"task {self.name!r}: its template {error}") from error


def check_tasks(tasks: Sequence[HarnessTask], num_fewshot: int, limit: int) -> None:
    """Raise InvalidArgument for what the harness is not asked."""
    if not 1 <= len(tasks) <= MAX_TASKS:
        raise InvalidArgument(f"the suite has {len(tasks)} tasks; name 1 to {MAX_TASKS}")
    for what, value, allowed in (("num_fewshot", num_fewshot, FEWSHOT), ("limit", limit, LIMITS)):
        if value not in allowed:
            raise InvalidArgument(f"{what}={value} is out of range; choose a value in {allowed.text}")
    seen = set()
    for task in tasks:
        _check_task(task)
        if task.name in seen:
            raise InvalidArgument(f"task {task.name!r} comes twice; give each a name of its own")
        seen.add(task.name)


def _check_task(task: HarnessTask) -> None:
    if not _NAME.fullmatch(task.name):
        what = f"task name {task.name[:100]!r} is not allowed"
        raise InvalidArgument(f"{what}; use letters, digits, '_', '-' and '.', beginning with a letter or digit")
    if len(task.language) > MAX_LANGUAGE or not task.language.isprintable():
        what = f"task {task.name!r}: language {task.language[:MAX_LANGUAGE]!r} is not allowed"
        raise InvalidArgument(f"{what}; use at most {MAX_LANGUAGE} printable characters, such as 'fr'")
    if len(task.jinja) + len(task.answer_choices) > MAX_TEMPLATE:
        raise InvalidArgument(f"task {task.name!r}: its template has more than {MAX_TEMPLATE} characters; shorten it")
    if not task.dataset and (task.jinja or task.answer_choices):
        raise InvalidArgument(f"task {task.name!r} has a template and no dataset; name the one whose rows it renders")
    if task.dataset:
        _ = task.template


def check_rows(artifacts: ArtifactStore, task: HarnessTask, dataset: Dataset) -> None:
    """Raise InvalidArgument unless the task's template suits the dataset's rows. Blocking."""
    if dataset.format not in FORMATS:
        what = f"task {task.name!r}: dataset {dataset.name!r} is {dataset.format}"
        raise InvalidArgument(f"{what}; templates render {' and '.join(FORMATS)} rows")
    check_fields(artifacts, dataset, [task.template])


def as_kept(tasks: Sequence[HarnessTask], num_fewshot: int, limit: int, names: dict[str, str]) -> dict[str, Any]:
    """What a suite's row keeps of it. names: of datasets, as asked for -> with their version."""
    kept = [asdict(task) | {"dataset": names.get(task.dataset, "")} for task in tasks]
    return {"tasks": kept, "num_fewshot": num_fewshot, "limit": limit}


def metric_of(suite: EvaluationSuite, name: str) -> str:
    """Which of the suite's metrics a result's `name` is: of the harness's tasks they are "<task>/<metric>"."""
    return name.rpartition("/")[2] if suite.kind == LM_EVAL else name
