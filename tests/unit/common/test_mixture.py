"""The YAML of a mixture: tasks, templates by language, the most examples; what makes no sense is named."""

import pytest

from services.common import mixture
from services.common.mixture import parse_mixture

XNLI = """
max_examples: 100
chat: {user: "Q: {content}\\n"}
tasks:
  xnli:
    max_examples: 5
    templates:
      - {name: english, jinja: "{{a}} ||| {{b}}"}
      - {name: french, jinja: "{{a}} donc ||| {{b}}", languages: [fr, "no"]}
      - {name: also french, jinja: "{{a}} ainsi ||| {{b}}", languages: [fr]}
  tales: {}
"""


def test_a_mixture_is_read_with_its_caps_and_its_format():
    found = parse_mixture(XNLI)
    assert {name: task.max_examples for name, task in found.tasks.items()} == {"xnli": 5, "tales": 100}
    assert (found.separator, found.chat.user, found.chat.system) == (" ", "Q: {content}\n", "{content}\n")


def test_a_row_is_put_by_the_templates_for_its_language_or_else_by_those_for_any():
    task = parse_mixture(XNLI).tasks["xnli"]
    names = {code: [template.name for template in task.templates_for(code)] for code in ("fr", "no", "sw", "")}
    assert names == {"fr": ["french", "also french"], "no": ["french"], "sw": ["english"], "": ["english"]}


def in_task(fields: str) -> str:
    return f"tasks:\n  xnli: {{{fields}}}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tasks: [", "the mixture is no YAML"),
        ("tasks: 2026-99-99", "the mixture is no YAML"),
        ("- tasks", "the mixture is no mapping; it takes chat, max_examples, separator, tasks"),
        ("tasks: {}", "the mixture has no 'tasks'"),
        ("tasks: {a: {}}\nweights: 1", "the mixture has 'weights'; it takes chat"),
        ("tasks: {a: {}}\nmax_examples: 0", "the mixture: max_examples is 0; give a whole number from 1"),
        ("tasks: {a: {}}\nseparator: 1", "separator is no text"),
        ("tasks: {a: {}}\nchat: {robot: x}", "chat has 'robot'; it takes assistant, system, user"),
        ("tasks: {a: {}}\nchat: {user: x}", "chat.user is 'x'; write a text with {content}"),
        ("tasks: {a: }", "task 'a' is no mapping; it takes max_examples, templates"),
        (in_task("max_examples: 1.5"), "task 'xnli': max_examples is 1.5"),
        (in_task("max_examples: true"), "task 'xnli': max_examples is True"),
        (in_task("templates: x"), "task 'xnli': templates is no list"),
        (in_task("templates: [x]"), "task 'xnli', template 1 is no mapping"),
        (in_task("templates: [{name: x}]"), "task 'xnli', template 1: jinja is no text"),
        (in_task('templates: [{jinja: "{{a}}"}]'), r"task 'xnli', template 1 has no \|\|\|"),
        (in_task('templates: [{jinja: "{{a ||| b"}]'), "task 'xnli', template 1 is no Jinja: line 1"),
        (in_task('templates: [{jinja: "a ||| b", languages: [no]}]'), "languages is no list of codes in quotes"),
        (in_task('templates: [{jinja: "a ||| b", metadata: x}]'), "template 1 has 'metadata'; it takes answer_choices"),
    ],
)
def test_what_makes_no_sense_is_named_with_what_to_write(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_mixture(text)


def test_a_mixture_of_very_many_templates_or_tasks_is_refused(monkeypatch):
    monkeypatch.setattr(mixture, "MAX_TEMPLATES", 3)
    with pytest.raises(ValueError, match="more than 3 templates; make several of it"):
        parse_mixture("tasks:\n  a: {templates: &t [{jinja: 'a ||| b'}, {jinja: 'a ||| c'}]}\n  b: {templates: *t}")
    monkeypatch.setattr(mixture, "MAX_TASKS", 1)
    with pytest.raises(ValueError, match="the mixture has 2 tasks; name at most 1"):
        parse_mixture("tasks: {a: {}, b: {}}")
