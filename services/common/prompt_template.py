"""A prompt template as promptsource writes it: Jinja that renders a row to inputs, "|||" and targets.

Source: Bach et al. 2022, PromptSource; xP3's templates have this form. They come from a job's submitter: whoever checks
one parses it and computes nothing; the job's own processes render it, in Jinja's sandbox.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

BAR = "|||"
CHOICES = "answer_choices"
_MARKED = "\ue000|||\ue000"  # what a template's BAR is until it is split there: a row's own BAR stays text
_JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTemplate:
    """One way to put a task. Raises ValueError where it cannot be one."""

    name: str
    jinja: str
    answer_choices: str = ""  # Jinja of "Yes ||| No": a list, `answer_choices`, that `jinja` may use
    languages: tuple[str, ...] = ()  # of the rows that it is for; (): of all that no other template names

    def __post_init__(self) -> None:
        if BAR not in self.jinja:
            raise ValueError(f"has no {BAR} between its inputs and its targets")
        for source in (self.jinja, self.answer_choices):
            _check(_parsed(source))

    def fields(self) -> set[str]:
        """What a row is expected to have."""
        names = _names(self.jinja)
        return names - {CHOICES} | _names(self.answer_choices) if self.answer_choices else names

    def render(self, row: Mapping[str, Any]) -> tuple[str, str] | None:
        """Inputs and targets, stripped; None where it renders to nothing: how a template leaves a row out.

        Raises ValueError where the row does not suit it.
        """
        try:
            if self.answer_choices:
                row = {**row, CHOICES: _rendered(self.answer_choices, row)}
            parts = _rendered(self.jinja, row)
        except Exception as error:  # the submitter's code: anything can come out of it
            raise ValueError(f"does not suit {self.name!r}: {error}") from error
        if parts == [""]:
            return None
        if len(parts) != 2 or not parts[1]:
            shown = f" {BAR} ".join(parts)
            raise ValueError(f"gives with {self.name!r} no inputs {BAR} targets, but {shown!r:.200}")
        return parts[0], parts[1]

    def choices(self, row: Mapping[str, Any]) -> list[str]:
        """`answer_choices` of a row, stripped. Raises ValueError where the row does not suit it."""
        try:
            return _rendered(self.answer_choices, row)
        except Exception as error:  # as in `render`
            raise ValueError(f"does not suit {self.name!r}: {error}") from error


def _rendered(source: str, row: Mapping[str, Any]) -> list[str]:
    return [part.strip() for part in _compiled(source).render(row).split(_MARKED)]


@lru_cache(maxsize=4096)
def _compiled(source: str) -> Template:
    return _JINJA.from_string(source.replace(BAR, _MARKED))


def _parsed(source: str) -> nodes.Template:
    try:
        return _JINJA.parse(source)
    except TemplateSyntaxError as error:
        raise ValueError(f"is no Jinja: line {error.lineno}: {error.message}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def _check(template: nodes.Template) -> None:
    for kind, known in ((nodes.Filter, _JINJA.filters), (nodes.Test, _JINJA.tests)):
        for node in template.find_all(kind):
            if node.name not in known:
                raise ValueError(f"has no Jinja {kind.__name__.lower()} {node.name!r}; choose among {', '.join(known)}")
    if next(template.find_all((nodes.Extends, nodes.FromImport, nodes.Import, nodes.Include)), None):
        raise ValueError("loads another template; write it out")


def _names(source: str) -> set[str]:
    """That a template reads and does not set."""
    names = list(_parsed(source).find_all(nodes.Name))
    return {name.name for name in names} - {name.name for name in names if name.ctx != "load"} - set(_JINJA.globals)
