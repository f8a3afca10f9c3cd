"""A mixture of tasks: datasets, templates that make examples of their rows, and at most how many; a YAML file says so.

max_examples: 100000          # of each task in a pass over the data; default: all
separator: " "                # before targets that templates render; default: a space
chat: {user: "User: {content}\n"}  # the text of messages; default: chat.py's
tasks:
  xnli:                       # a dataset of fields: its newest version, or say xnli@2
    max_examples: 5000
    templates:
      - {jinja: "{{premise}} … ||| {{answer_choices[label]}}", answer_choices: "Yes ||| Maybe ||| No"}
      - {jinja: "…", languages: [fr]}
  tales: {}                   # a dataset of examples or of conversations, as it is
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from services.common.chat import ChatFormat
from services.common.prompt_template import PromptTemplate

MAX_TEMPLATES = 10_000  # of a mixture: each takes about a millisecond to check
MAX_TASKS = 10_000  # which the registry looks up in one query


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    templates: tuple[PromptTemplate, ...] = ()  # none: rows are examples
    max_examples: int | None = None  # in a pass; None: as the job says

    def templates_for(self, language: str) -> tuple[PromptTemplate, ...]:
        """Those for rows in `language` ("" where they do not say): the ones that name it, or else those for any."""
        named = tuple(template for template in self.templates if language and language in template.languages)
        return named or tuple(template for template in self.templates if not template.languages)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    tasks: Mapping[str, Task]  # by dataset
    separator: str = " "
    chat: ChatFormat = field(default_factory=ChatFormat)

    def task_of(self, dataset: str) -> Task | None:
        """The task that a dataset's version ("xnli@2") has: under that name, or under the dataset's alone."""
        return self.tasks.get(dataset) or self.tasks.get(dataset.partition("@")[0])


def parse_mixture(text: str) -> Mixture:
    """Raises ValueError with what is wrong and what to write."""
    try:
        fields = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"the mixture is no YAML: {error}") from error
    _check_keys("the mixture", fields, {"tasks", "max_examples", "separator", "chat"})
    tasks, separator, chat = fields.get("tasks"), fields.get("separator", " "), fields.get("chat", {})
    if not isinstance(tasks, dict) or not tasks:
        raise ValueError("the mixture has no 'tasks': {dataset: {templates: […], max_examples: …}, …}")
    if len(tasks) > MAX_TASKS:
        raise ValueError(f"the mixture has {len(tasks)} tasks; name at most {MAX_TASKS}")
    if not isinstance(separator, str):
        raise ValueError("the mixture's separator is no text; write one in quotes, or leave it out for a space")
    _check_keys("chat", chat, {"system", "user", "assistant"})
    most = _max_examples("the mixture", fields)
    parsed: dict[str, Task] = {}
    num_templates = 0
    for name, fields_of_task in tasks.items():
        parsed[str(name)] = task = _task(f"task {str(name)!r}", fields_of_task, most)
        num_templates += len(task.templates)
        if num_templates > MAX_TEMPLATES:
            raise ValueError(f"the mixture has more than {MAX_TEMPLATES} templates; make several of it")
    return Mixture(tasks=parsed, separator=separator, chat=ChatFormat(**chat))


def _task(what: str, fields: Any, most: int | None) -> Task:
    _check_keys(what, fields, {"templates", "max_examples"})
    templates = fields.get("templates", [])
    if not isinstance(templates, list) or len(templates) > MAX_TEMPLATES:
        raise ValueError(f"{what}: templates is no list of at most {MAX_TEMPLATES}: [{{jinja: '… ||| …'}}, …]")
    parsed = tuple(_template(what, f"template {number}", item) for number, item in enumerate(templates, 1))
    return Task(templates=parsed, max_examples=_max_examples(what, fields) or most)


def _template(task: str, name: str, fields: Any) -> PromptTemplate:
    """name: what it is called unless it says."""
    what = f"{task}, {name}"
    _check_keys(what, fields, {"name", "jinja", "answer_choices", "languages"})
    defaults = {"name": name, "jinja": None, "answer_choices": ""}
    texts = {key: fields.get(key, default) for key, default in defaults.items()}
    if wrong := next((key for key, value in texts.items() if not isinstance(value, str)), None):
        raise ValueError(f"{what}: {wrong} is no text; write one in quotes")
    languages = fields.get("languages", [])
    if not isinstance(languages, list) or not all(isinstance(language, str) for language in languages):
        raise ValueError(f"{what}: languages is no list of codes in quotes: ['fr', 'no']")
    try:
        return PromptTemplate(**texts, languages=tuple(languages))
    except ValueError as error:
        raise ValueError(f"{what} {error}") from error


def _max_examples(what: str, fields: dict[str, Any]) -> int | None:
    value = fields.get("max_examples")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        shown = repr(value)[:40] if isinstance(value, (int, float, str)) else "no number"
        raise ValueError(f"{what}: max_examples is {shown}; give a whole number from 1, or leave it out for all")
    return value


def _check_keys(what: str, fields: Any, known: set[str]) -> None:
    choices = ", ".join(sorted(known))
    if not isinstance(fields, dict):
        raise ValueError(f"{what} is no mapping; it takes {choices}")
    if unknown := next((str(key) for key in fields if key not in known), None):
        raise ValueError(f"{what} has {unknown[:80]!r}; it takes {choices}")
