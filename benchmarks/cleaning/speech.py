"""Sentences that look like a language: words of held-out articles of the Declaration, in orders that are partly theirs.

The articles are those that the language identifier has not learnt from (`articles.json`, written by
`python -m examples.language_identifier --articles`), so what it makes of these sentences is a test of it.
"""

import json
import random
from functools import cache
from pathlib import Path

import regex

ARTICLES = Path(__file__).with_name("articles.json")
_WORD = regex.compile(r"[\p{L}\p{M}’'-]+")
_FULL_STOPS = {"zh-hans": "。", "hi": "।", "bn": "।", "mr": ".", "ur": "۔"}
NEXT_AS_WRITTEN = 0.5  # how often a word is followed by what followed it
INVENTED = 0.08  # how often a word is made of two halves of others


class Speaker:
    def __init__(self, language: str, text: str, rng: random.Random) -> None:
        self.language = language
        self._spaced = language != "zh-hans"
        self._words: list[str] = _WORD.findall(text) if self._spaced else regex.findall(r"\p{Han}", text)
        self._rng = rng

    def sentence(self, min_words: int = 8, max_words: int = 16) -> str:
        num_words = self._rng.randint(min_words, max_words) * (1 if self._spaced else 2)
        place = self._rng.randrange(len(self._words))
        words = []
        for _ in range(num_words):
            words.append(self._invented() if self._spaced and self._rng.random() < INVENTED else self._words[place])
            follows = self._rng.random() < NEXT_AS_WRITTEN
            place = (place + 1) % len(self._words) if follows else self._rng.randrange(len(self._words))
        text = (" " if self._spaced else "").join(words)
        return text[:1].upper() + text[1:] + _FULL_STOPS.get(self.language, ".")

    def line(self) -> str:
        return (" " if self._spaced else "").join(self.sentence() for _ in range(self._rng.randint(1, 2)))

    def text(self, min_lines: int = 6, max_lines: int = 10) -> list[str]:
        return [self.line() for _ in range(self._rng.randint(min_lines, max_lines))]

    def word(self) -> str:
        """One that can stand in for another."""
        return self._rng.choice(self._words)

    def _invented(self) -> str:
        first, second = self.word(), self.word()
        return f"{first[: (len(first) + 1) // 2]}{second[len(second) // 2 :]}"


@cache
def articles() -> dict[str, str]:
    """The text of the held-out articles by language."""
    texts: dict[str, str] = json.loads(ARTICLES.read_text(encoding="utf-8"))
    return texts
