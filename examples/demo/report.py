"""The demo's tables."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .bars import Results
from .baselines import BYTE_NGRAM, CHARACTER_NGRAM, LZMA, PRIMED_LZMA
from .languages import NAMES
from .sizes import total

COLUMNS = (LZMA, PRIMED_LZMA, BYTE_NGRAM, CHARACTER_NGRAM)


def language_table(results: Results) -> Table:
    """Bits per byte of every language, best column bold, natural and programming languages apart."""
    table = Table(title="Bits per byte on text never trained on", caption="lower is better")
    table.add_column("language")
    for name in (*COLUMNS, results.pretrained):
        table.add_column(name, justify="right")
    natural, programming = results.natural_languages, results.programming_languages
    for language in natural:
        table.add_row(NAMES[language], *_row(results, [language]))
    table.add_section()
    table.add_row(f"all {len(natural)} languages", *_row(results, natural), style="bold")
    table.add_section()
    for language in programming:
        table.add_row(language, *_row(results, [language]))
    if programming:
        table.add_row("source code", *_row(results, programming), style="bold")
    return table


def _row(results: Results, languages: Sequence[str]) -> list[Text]:
    baselines = [total(results.baselines[name], languages) for name in COLUMNS]
    values = [*baselines, total(results.sizes, languages)]
    return [Text(f"{value:.2f}", style="green" if value == min(values) else "") for value in values]


def task_table(results: Results) -> Table:
    table = Table(title="Held-out tasks")
    table.add_column("task")
    for name in results.models:
        table.add_column(name, justify="right")
    models = results.models.values()
    table.add_row("names the language of a sentence", *(f"{model.naming:.1%}" for model in models))
    table.add_row("English to other languages, chrF", *(f"{model.chrf:.1f}" for model in models))
    return table


def answer_table(results: Results) -> Table:
    """A few held-out tasks, answered by both models."""
    table = Table(title="Answers to held-out tasks", show_lines=True)
    for name in ("task", *results.models, "right answer"):
        table.add_column(name, overflow="fold")  # Chinese has no spaces to wrap at
    answers = zip(*(model.answers for model in results.models.values()), strict=True)
    for question, given in zip(results.questions, answers, strict=True):
        table.add_row(Text(question.inputs), *map(Text, given), Text(question.targets.strip()))
    return table


def completion_table(results: Results) -> Table:
    """The same prompts, completed by both models."""
    table = Table(title="Completions", show_lines=True)
    for name in ("language", "prompt", *results.models):
        table.add_column(name, overflow="fold")
    completions = zip(*(model.completions for model in results.models.values()), strict=True)
    for (language, prompt), answers in zip(results.prompts, completions, strict=True):
        table.add_row(NAMES[language], Text(prompt), *(Text(" ".join(answer.split())) for answer in answers))
    return table


def time_table(seconds: Mapping[str, float]) -> Table:
    table = Table(title="Time")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for stage, duration in seconds.items():
        table.add_row(stage, f"{duration:.1f}")
    table.add_section()
    table.add_row("total", f"{sum(seconds.values()):.1f}", style="bold")
    return table


def print_all(console: Console, results: Results, seconds: Mapping[str, float]) -> None:
    tables = (language_table, task_table, answer_table, completion_table)
    for table in (*(make(results) for make in tables), time_table(seconds)):
        console.print(table)
