"""A multitask set in the manner of xP3: name the language of a sentence, translate from English.

Sentences and pairs come from the Declaration: its paragraphs correspond across languages wherever an article has as
many of them in both. Held out are those of the held-out articles, so no tested sentence or pair was trained on in any
language.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from .corpus import PREAMBLE, Article
from .languages import NAMES

NAMING = "name the language"
TRANSLATION = "translate"
MAX_SENTENCE_CHARACTERS = 120  # naming needs no more
MIN_SENTENCE_CHARACTERS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    task: str
    language: str  # ROOTS code of the language named or translated into
    inputs: str
    targets: str

    def row(self) -> dict[str, Any]:
        """A MULTITASK row."""
        return {"inputs": self.inputs, "targets": self.targets, "language": self.language}


def examples(articles: Sequence[Article]) -> list[Example]:
    """Both tasks on every paragraph that serves."""
    return [*naming(articles), *translation(articles)]


def naming(articles: Sequence[Article]) -> Iterator[Example]:
    for article in articles:
        for paragraph in article.paragraphs:
            sentence = paragraph[:MAX_SENTENCE_CHARACTERS]
            if len(sentence) >= MIN_SENTENCE_CHARACTERS:
                yield Example(
                    task=NAMING,
                    language=article.language,
                    inputs=naming_prompt(sentence),
                    targets=f" {NAMES[article.language]}",
                )


def translation(articles: Sequence[Article]) -> Iterator[Example]:
    """English to each other language, paragraph by paragraph."""
    by_language = {
        language: {article.number: article for article in group}
        for language, group in groupby(articles, key=lambda article: article.language)
    }
    english = by_language.get("en", {})
    for language, translated in by_language.items():
        for number, source in english.items():
            if language == "en" or number == PREAMBLE or number not in translated:
                continue
            if len(source.paragraphs) == len(translated[number].paragraphs):
                for paragraph, target in zip(source.paragraphs, translated[number].paragraphs, strict=True):
                    prompt = translation_prompt(paragraph, language)
                    yield Example(task=TRANSLATION, language=language, inputs=prompt, targets=f" {target}")


def naming_prompt(sentence: str) -> str:
    return f"{sentence}\nThe language of this sentence is:"


def translation_prompt(sentence: str, language: str) -> str:
    return f"{sentence}\nIn {NAMES[language]}:"
