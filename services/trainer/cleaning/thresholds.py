"""The cut-offs of ROOTS' OSCAR filters, published for 13 languages and a default for the others."""

from dataclasses import dataclass
from typing import Any

SOURCE = "bigscience-workshop/data-preparation@9d058841, 01b_oscar_cleaning_and_filtering/parameters_filtering.py"

# Minima and maxima are inclusive. The same parameters are called *_min_cutoff and *_max_cutoff in the source.
_PUBLISHED = """
language  min_words max_words word_length character_ngram character_repetition word_ngram word_repetition special stopwords flagged language_score perplexity
default   10        100000    50          10              0.2                  5          0.3             0.4     0.1       0.1     0.7            10000
ar        20        100000    25          10              0.2                  5          0.34            0.3     0.07      0.03    0.81           2300
bn        33        100000    20          10              0.13                 5          0.21            0.45    0.002     0.001   0.95           2000
ca        15        100000    20          10              0.2                  5          0.4             0.25    0.25      0.1     0.8            2500
en        20        100000    25          10              0.106                5          0.19            0.4     0.3       0.01    0.8            1500
es        16        100000    25          10              0.14                 5          0.25            0.34    0.4       0.01    0.8            1300
eu        8         100000    28          10              0.2                  5          0.4             0.31    0.05      0.1     0.7            3000
fr        13        100000    45          10              0.14                 5          0.13            0.34    0.27      0.008   0.8            1770
hi        38        100000    25          10              0.18                 5          0.47            0.45    0.01      0.005   0.9            1517
id        15        100000    30          10              0.15                 5          0.2             0.34    0.15      0.01    0.7            5000
pt        19        100000    19          10              0.25                 5          0.98            0.35    0.2       0.007   0.6            3038
ur        25        100000    20          10              0.19                 7          0.5             0.25    0.01      0.025   0.9            1495
vi        30        100000    25          10              0.15                 5          0.2             0.34    0.08      0.005   0.9            1600
zh        1         1000000   1000        3               0.2                  5          0.96            0.3     0.1691    0.001   0.85           2095
"""  # noqa: E501


@dataclass(frozen=True, slots=True)
class Thresholds:
    min_words: int
    max_words: int
    word_length: int  # characters; longer words are removed from the text
    character_ngram: int
    character_repetition: float  # at most this share
    word_ngram: int
    word_repetition: float  # at most this share
    special: float  # at most this share of the characters
    stopwords: float  # at least this share of the words
    flagged: float  # at most this share of the words
    language_score: float  # at least this; published for fastText's lid.176
    perplexity: float  # at most this; published for KenLM models that we do not have: never applied
    removes_words: bool  # the default neither removes long words nor addresses
    joins_words: str | None  # pairs of words, so joined, are looked up as well: Chinese, Vietnamese


def _read() -> dict[str, Thresholds]:
    rows = [line.split() for line in _PUBLISHED.strip().splitlines()]
    names = rows[0][1:]
    return {language: _thresholds(language, dict(zip(names, values, strict=True))) for language, *values in rows[1:]}


def _thresholds(language: str, values: dict[str, str]) -> Thresholds:
    numbers: dict[str, Any] = {name: float(value) if "." in value else int(value) for name, value in values.items()}
    joins_words = {"zh": "", "vi": " "}.get(language)
    return Thresholds(**numbers, removes_words=language not in ("default", "zh"), joins_words=joins_words)


OSCAR = _read()


def oscar_code(language: str) -> str:
    """The code that BigScience's files use: both Chinese scripts are "zh"."""
    return "zh" if language.startswith("zh-") else language


def thresholds_of(language: str) -> Thresholds:
    return OSCAR.get(oscar_code(language), OSCAR["default"])
