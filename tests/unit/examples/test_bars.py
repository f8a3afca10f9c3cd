import dataclasses
import io

from rich.cells import cell_len
from rich.console import Console

from examples.demo.bars import ModelResults, Results, judge
from examples.demo.baselines import BYTE_NGRAM, CHARACTER_NGRAM, LZMA, PRIMED_LZMA
from examples.demo.languages import ROOTS
from examples.demo.parallel import Example
from examples.demo.report import language_table, print_all, task_table
from examples.demo.sizes import Size, Sizes

LANGUAGES = [language.code for language in ROOTS if language.file]


def sizes(bits_per_byte: float) -> Sizes:
    return {language: Size(1000 * bits_per_byte, 1000) for language in [*LANGUAGES, "Python"]}


def results() -> Results:
    return Results(
        pretrained="seedling",
        fine_tuned="seedling-z",
        models={
            "seedling": ModelResults(naming=0.01, chrf=5.0, answers=["a"], completions=["a"]),
            "seedling-z": ModelResults(naming=0.90, chrf=20.0, answers=["French"], completions=["b"]),
        },
        sizes=sizes(1.50),
        baselines={
            LZMA: sizes(2.9),
            PRIMED_LZMA: sizes(1.6),
            BYTE_NGRAM: sizes(1.7),
            CHARACTER_NGRAM: sizes(1.49),
        },
        questions=[Example(task="name", language="fr", inputs="Tous\nThe language is:", targets=" French")],
        prompts=[("en", "All human")],
    )


def with_base(**changes: object) -> Results:
    measured = results()
    base = dataclasses.replace(measured.models["seedling"], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(measured, models={**measured.models, "seedling": base})


def missed(measured: Results) -> list[str]:
    return [bar.text for bar in judge(measured) if not bar.met]


def test_a_good_run_meets_every_bar():
    assert missed(results()) == []


def test_a_model_that_learned_less_than_primed_lzma_misses_three_bars():
    assert (
        len(missed(dataclasses.replace(results(), sizes=sizes(1.65)))) == 3
    )  # 1.60, primed lzma in total, primed lzma by language


def test_a_base_that_names_languages_already_is_a_miss():
    assert missed(with_base(naming=0.2)) == ["seedling: names 20.0% of languages, under 5%"]


def test_a_base_that_translates_half_as_well_already_is_a_miss():
    assert missed(with_base(chrf=10.5)) == ["seedling-z: chrF 20.0, more than 2 times seedling's 10.5"]


def test_source_code_counts_for_no_bar():
    hard_code = {**sizes(1.50), "Python": Size(9_000, 1_000)}
    assert missed(dataclasses.replace(results(), sizes=hard_code)) == []


def test_the_table_has_a_row_for_each_language_and_one_for_each_total():
    assert language_table(results()).row_count == len(LANGUAGES) + 1 + 1 + 1
    assert task_table(results()).row_count == 2


def test_the_tables_keep_to_the_width_that_they_are_given():
    written = io.StringIO()
    long = dataclasses.replace(results(), prompts=[("en", "All human beings " * 4)])
    print_all(Console(file=written, width=120), long, {"pre-train seedling": 240.0})
    lines = written.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= 120
    assert any("character 5-gram" in line for line in lines)  # a header is not wrapped
