"""Tasks that the harness itself has, by name: its code and its templates, with data from the Hugging Face hub."""

import re
from collections.abc import Iterable
from typing import Any

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from services.trainer.failure import JobFailure
from services.trainer.harness.spec import HarnessSpec, HarnessTask

_EVALUATING = re.compile(r"score_.*math.*")  # by sympy's parse_expr, which is an `eval`
_LANGUAGE = re.compile(r".*_([a-z]{2})")


def find_tasks(**of: Any) -> TaskManager:
    """What the harness knows, but for tasks that are classes of their own: some fetch code from the hub and run it.

    of: as TaskManager has it; by default all of the harness's.
    """
    manager = TaskManager(**of)
    for name in [name for name, entry in manager.task_index.items() if entry.kind.name == "PY_TASK"]:
        del manager.task_index[name]
    return manager


def known_tasks(spec: HarnessSpec, task: HarnessTask, manager: TaskManager) -> dict[str, Task]:
    """The task, or each of a group's. Raises JobFailure for a name that the harness does not know, for what runs a
    model's code, and where the data cannot be had.
    """
    if task.name not in manager.task_index:  # else it would be taken for a file's path
        what = f"lm-evaluation-harness has no task {task.name!r} that is a template"
        raise JobFailure("BAD_TASK", f"{what}; `lm-eval ls tasks` shows", "suite")
    try:
        found: dict[str, Task] = manager.load([task.name])["tasks"]
    except Exception as error:  # the hub's client, and tasks' own code, raise anything
        why = f"{type(error).__name__}: {error}"[:500]
        remedy = "its data come from the hub, which the worker has to reach; or make a task of a dataset's rows"
        raise JobFailure("BAD_TASK", f"task {task.name!r} cannot be loaded: {why}; {remedy}", "suite") from error
    for name, one in found.items():
        if getattr(one, "UNSAFE_CODE", False) or _EVALUATING.fullmatch(name):
            raise JobFailure("BAD_TASK", f"task {name!r} runs code that a model writes; leave it out", "suite")
        _set_examples(one, spec.num_fewshot)
    return found


def _set_examples(task: Task, num_fewshot: int) -> None:
    """As `simple_evaluate` does: a task that fixes none keeps that."""
    default = task.get_config("num_fewshot")
    if default is None or (num_fewshot and default != 0):
        task.set_config("num_fewshot", num_fewshot)


def language_of(task: HarnessTask, name: str) -> str:
    """Of the task called `name`, which is `task` or one of its group."""
    found = _LANGUAGE.fullmatch(name)
    return task.language or (found[1] if found else "")


def seeded(tasks: Iterable[Task], seed: int) -> None:
    """The same examples before the same question, of whatever version it is asked."""
    for task in tasks:
        task.set_fewshot_seed(seed)
