"""ROOTS' filters for documents in natural languages: each a ratio of the text, compared with its language's cut-off.

Source: bigscience-workshop/data-preparation@9d058841, 01b_oscar_cleaning_and_filtering/filtering.py.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator

import regex

from services.trainer.cleaning import words
from services.trainer.cleaning.thresholds import thresholds_of

REASONS = (
    "number_of_words",
    "character_repetition",
    "word_repetition",
    "special_characters",
    "stopwords",
    "flagged_words",
)
_NO_MODELS = "its KenLM and SentencePiece models were never part of a package; none is bundled here"
_SPACES = regex.compile(r"[\p{Zs}\x84\ufffc]")  # with what stands for spaces in mis-decoded text
_ADDRESSES = ("http", "www", ".com", "href", "//")


def tidy(text: str, language: str) -> str:
    """The text before it is judged: one kind of space; where published, without long words and web addresses."""
    text = _SPACES.sub(" ", text.strip())
    limits = thresholds_of(language)
    if not limits.removes_words:
        return text
    cells = ((_tidy_cell(cell, limits.word_length) for cell in line.split("\t")) for line in text.split("\n"))
    lines = ("\t".join(filter(None, line)) for line in cells)
    return "\n".join(filter(None, lines))


def _tidy_cell(text: str, max_length: int) -> str:
    return " ".join(word for word in text.split(" ") if word and _is_kept(word, max_length))


def _is_kept(word: str, max_length: int) -> bool:
    if any(part in word for part in _ADDRESSES) and any(part in words.strip(word) for part in _ADDRESSES):
        return False
    # A long word is let pass when it is short without what is around it.
    return len(word) <= max_length or 0 < len(words.strip(word)) <= max_length


def not_applied(listed: Collection[str]) -> dict[str, str]:
    """Filter -> why it judged no text, or those of some languages alone; `listed` have lists of flagged words."""
    no_list = "no list was given"
    return {
        "perplexity": _NO_MODELS,
        "flagged_words": f"in languages other than {', '.join(sorted(listed))}: {no_list}" if listed else no_list,
        "stopwords": "in languages for which no cut-off was published",
    }


def reason_to_drop(text: str, language: str, flagged: Collection[str] = frozenset()) -> str | None:
    """The first of REASONS that holds, in the published order; None for a text to keep."""
    return next(_reasons(text, language, flagged), None)


def _reasons(text: str, language: str, flagged: Collection[str]) -> Iterator[str]:
    limits = thresholds_of(language)
    found = words.split(text, language)
    if not limits.min_words <= len(found) <= limits.max_words:
        yield "number_of_words"
    if character_repetition(text, limits.character_ngram) > limits.character_repetition:
        yield "character_repetition"
    if word_repetition(found, limits.word_ngram) > limits.word_repetition:
        yield "word_repetition"
    if special_share(text) > limits.special:
        yield "special_characters"
    if words.stopwords(language) and share_in(found, words.stopwords(language), limits.joins_words) < limits.stopwords:
        yield "stopwords"
    if flagged and share_in(found, flagged, limits.joins_words) > limits.flagged:
        yield "flagged_words"


def character_repetition(text: str, n: int) -> float:
    """Share of the n-grams that the most frequent ones make, √(number of different ones) of them at most."""
    counts = Counter(text[i : i + n] for i in range(len(text) - n + 1))
    repeated = sorted((count for count in counts.values() if count > 1), reverse=True)
    return sum(repeated[: math.isqrt(len(counts))]) / max(1, counts.total())


def word_repetition(found: list[str], n: int) -> float:
    """Share of the word n-grams that occur more than once."""
    counts = Counter(tuple(found[i : i + n]) for i in range(len(found) - n + 1))
    return sum(count for count in counts.values() if count > 1) / max(1, counts.total())


def special_share(text: str) -> float:
    return sum(map(words.SPECIAL.__getitem__, text)) / max(1, len(text))


def stopword_share(text: str, language: str) -> float:
    return share_in(words.split(text, language), words.stopwords(language), thresholds_of(language).joins_words)


def share_in(found: list[str], listed: Collection[str], joins_words: str | None) -> float:
    """Words in a list, and pairs of them where they are joined, per word of the text; 1 at most."""
    looked_up = found if joins_words is None else found + words.pairs(found, joins_words)
    return min(1.0, sum(word in listed for word in looked_up) / max(1, len(found)))
