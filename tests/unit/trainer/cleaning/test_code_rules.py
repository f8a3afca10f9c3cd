import random

import pytest

from benchmarks.cleaning import programs
from services.trainer.cleaning.code_rules import MAX_BYTES, reason_to_drop
from services.trainer.cleaning.languages import PROGRAMMING, programming_language

PROGRAM = programs.program("Rust", random.Random(1))


@pytest.mark.parametrize("language", programs.LANGUAGES)
def test_an_ordinary_file_is_kept(language: str):
    for seed in range(20):
        assert reason_to_drop(programs.program(language, random.Random(seed)), "mit", "permissive") is None


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("code_size", PROGRAM + "é" * (MAX_BYTES // 2)),
        ("code_token_lengths", "ab cd ef gh " * 40),
        ("code_characters", "let a_long_name = 1;"),
        ("code_non_word_share", PROGRAM + "// " + "=-" * 2000 + "\n" + "({[<>]}) " * 400),
        ("code_longest_line", PROGRAM + "// " + "word " * 300),
    ],
)
def test_each_rule_refuses_what_it_is_for(reason: str, text: str):
    assert reason_to_drop(text, "mit", "permissive") == reason


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("permissive", ["mit", "apache-2.0", None]),
        ("as_published", ["GPL-3.0"]),
        ("any", ["mit", "apache-2.0", None, "GPL-3.0"]),
    ],
)
def test_the_published_licence_rule_kept_copyleft_alone_and_ours_the_rest(rule, kept: list[str | None]):
    found = [
        licence for licence in ("mit", "apache-2.0", None, "GPL-3.0") if reason_to_drop(PROGRAM, licence, rule) is None
    ]
    assert found == kept


def test_thirteen_languages_are_told_by_their_endings_with_case():
    assert len(PROGRAMMING) == 13
    assert programming_language("src/a.tsx") == "TypeScript"
    assert programming_language("a.C") == "C"
    assert programming_language("a.c") is None  # as in ROOTS' query
    assert programming_language("README.md") is None
