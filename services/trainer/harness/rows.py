"""Rows of a dataset as a task of the harness: one for each language, whose examples are of that language as well.

Templates are the submitter's. They are rendered here, in Jinja's sandbox; the harness, whose own Jinja is another, gets
what came out, in columns that it takes as they are.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from services.common.artifacts import ArtifactStore
from services.common.prompt_template import PromptTemplate
from services.trainer.failure import JobFailure
from services.trainer.harness.spec import HarnessSpec, HarnessTask
from services.trainer.prepare import Rows

Question = Mapping[str, Any]  # text, target; choices where the target is the number of one
METRICS = ("acc", "acc_norm")
_NUMBER = re.compile(r"[0-9]{1,4}")


def tasks_of_rows(spec: HarnessSpec, task: HarnessTask, store: ArtifactStore) -> dict[str, ConfigurableTask]:
    """By language. Raises JobFailure for a row that makes no question, and where there are too few for examples."""
    assert task.dataset is not None
    rows = Rows(store.local_path(task.dataset.digest), task.dataset)
    by_language = read_questions(rows, task, spec.limit and spec.limit + spec.num_fewshot)
    if not by_language:
        raise JobFailure("BAD_DATA", f"task {task.name!r}: dataset {task.dataset.name!r} makes no question", "suite")
    for language, questions in by_language.items():
        if len(questions) <= spec.num_fewshot:
            what = f"task {task.name!r} has {len(questions)} questions in {language or 'no language'}"
            remedy = f"num_fewshot={spec.num_fewshot} takes more: give rows, or ask for fewer examples"
            raise JobFailure("BAD_DATA", f"{what}; {remedy}", "suite")
    return {language: _task(spec, task, language, questions) for language, questions in by_language.items()}


def read_questions(rows: Rows, task: HarnessTask, most: int = 0) -> dict[str, list[Question]]:
    """Language -> its questions, in the order of the rows. Rows that the template leaves out are none.

    most: of a language, the first of them; 0: all.
    """
    template = PromptTemplate(name=task.name, jinja=task.jinja, answer_choices=task.answer_choices)
    found: dict[str, list[Question]] = {}
    for number in range(len(rows)):
        row = rows[number]
        if not row:
            continue
        language = task.language or str(row.get("language") or "")
        if most and len(found.get(language, ())) == most:
            continue
        try:
            question = _question(template, row)
        except ValueError as error:
            raise rows.bad(number, str(error)) from error
        if question:
            found.setdefault(language, []).append(question)
    return found


def _question(template: PromptTemplate, row: Mapping[str, Any]) -> Question | None:
    rendered = template.render(row)
    if rendered is None:
        return None
    text, target = rendered
    if not template.answer_choices:
        return {"text": text, "target": f" {target}"}
    choices = template.choices(row)
    return {"text": text, "choices": choices, "target": _place(target, choices, template.name)}


def _place(target: str, choices: Sequence[str], name: str) -> int:
    """Which choice the target is: by its text, or by its number from 0."""
    if len(choices) < 2 or not all(choices):
        raise ValueError(f"gives with {name!r} the choices {choices!r:.200}; two or more are needed, each with text")
    if target in choices:
        return choices.index(target)
    if _NUMBER.fullmatch(target) and int(target) < len(choices):
        return int(target)
    raise ValueError(f"gives with {name!r} the target {target!r:.100}, which is none of {choices!r:.200}")


def _task(spec: HarnessSpec, task: HarnessTask, language: str, questions: Sequence[Question]) -> ConfigurableTask:
    chosen = {"output_type": "multiple_choice", "doc_to_choice": "choices"}
    written = {"output_type": "loglikelihood", "target_delimiter": ""}  # the harness puts none before such a target
    metrics = METRICS if task.answer_choices else METRICS[:1]
    return ConfigurableTask(
        config={
            "task": f"{task.name} {language}" if language else task.name,
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(list(questions))},
            "test_split": "test",
            "fewshot_config": {"split": "test"},  # without the question itself
            "doc_to_text": "text",
            "doc_to_target": "target",
            "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics],
            "num_fewshot": spec.num_fewshot,
        }
        | (chosen if task.answer_choices else written)
    )
