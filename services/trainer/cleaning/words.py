"""Words, stop words and special characters, as BigScience's filters see them; the lists are not BigScience's."""

import unicodedata
from functools import cache
from itertools import pairwise

import regex
import stopwordsiso

from services.trainer.cleaning.thresholds import OSCAR, oscar_code

# Punctuation, symbols, numbers, separators, control and format characters, and what emoji are made of.
_SPECIAL = regex.compile(
    r"[\p{P}\p{S}\p{N}\p{Z}\p{Cc}\p{Cf}\p{Co}\p{Extended_Pictographic}\p{Emoji_Component}]",
)
_SEPARATORS = regex.compile(r"[ \n\t]+")
_CHINESE_WORDS = regex.compile(r"\p{Han}|[^\s\p{Han}]+")


class _Special(dict[str, bool]):
    """Whether a character is special; remembers the answer."""

    def __missing__(self, character: str) -> bool:
        self[character] = _SPECIAL.match(character) is not None
        return self[character]


SPECIAL = _Special()


@cache
def stopwords(language: str) -> frozenset[str]:
    """Those of the package stopwordsiso; empty for the languages that have no published cut-off."""
    code = oscar_code(language)
    return frozenset(map(_composed, stopwordsiso.stopwords(code))) if code in OSCAR else frozenset()


def _composed(text: str) -> str:
    """NFC: a letter and its marks look the same however they were written (in Vietnamese, Bengali, Hindi, Arabic)."""
    return unicodedata.normalize("NFC", text)


def strip(word: str) -> str:
    """The word without special characters at its ends."""
    start, end = 0, len(word)
    while start < end and SPECIAL[word[start]]:
        start += 1
    while end > start and SPECIAL[word[end - 1]]:
        end -= 1
    return word[start:end]


def split(text: str, language: str) -> list[str]:
    """Words in lower case, composed and stripped.

    Chinese has none that spaces part; BigScience took SentencePiece's, from a model that we do not have. Here each
    Chinese character is a word.
    """
    text = _composed(text)
    found = _CHINESE_WORDS.findall(text) if oscar_code(language) == "zh" else _SEPARATORS.split(text)
    return [word for word in (strip(word.lower()) for word in found) if word]


def pairs(words: list[str], joined_by: str) -> list[str]:
    """Each word joined with the next."""
    return [first + joined_by + second for first, second in pairwise(words)]
