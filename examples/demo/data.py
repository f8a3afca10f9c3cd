"""All the text of the demo, split once: what is trained on and what is only tested on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import corpus, parallel, source_code
from .corpus import Article, Passage
from .parallel import Example

NUM_PAIRS = 2  # held-out translation pairs per language
MAX_PAIR_CHARACTERS = 140  # longer ones take long to generate and tell no more
MIN_PAIR_BYTES = 40  # a word or two tell little
PROMPT_ARTICLE = 29  # held out; its paragraphs' beginnings are the prompts of the completions
PROMPT_LANGUAGES = ("en", "es", "ar", "hi", "bn", "ta", "te", "gu", "zh-hans", "yo")
PROMPT_CHARACTERS = 32
SHOWN_NAMING = ("ar", "ta", "yo", "pt")  # languages of the tasks whose answers are printed
SHOWN_PAIRS = ("es", "hi", "sw", "zh-hans")


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    declaration: Sequence[dict[str, Any]]  # TEXT rows
    code: Sequence[dict[str, Any]]  # TEXT rows
    multitask: Sequence[dict[str, Any]]  # MULTITASK rows
    passages: Sequence[Passage]  # held out
    naming: Sequence[Example]  # held out
    pairs: Sequence[Example]  # held out
    shown: Sequence[Example]  # a few of the held-out examples, to look at
    prompts: Sequence[tuple[str, str]]  # (language, beginning of a held-out paragraph)
    missing_code: Sequence[str]

    @property
    def training_text(self) -> dict[str, str]:
        """What the models and the baselines learn from, by language."""
        return {row["language"]: row["text"] for row in (*self.declaration, *self.code)}


def gather(folder: Path, held_out: frozenset[int] = corpus.TEST_ARTICLES) -> Data:
    """Fetch what is not in `folder` yet, and split everything by article or file."""
    articles = corpus.read_articles(corpus.declaration(folder))
    training, testing = corpus.split(articles, held_out)
    code = source_code.gather()
    naming, pairs = list(parallel.naming(testing)), _some_pairs(list(parallel.translation(testing)))
    return Data(
        declaration=corpus.documents(training),
        code=source_code.documents(code),
        multitask=[example.row() for example in parallel.examples(training)],
        passages=[*corpus.passages(articles, held_out), *source_code.passages(code)],
        naming=naming,
        pairs=pairs,
        shown=[*_first(naming, SHOWN_NAMING), *_first(pairs, SHOWN_PAIRS)],
        prompts=[(language, beginning(testing, language)) for language in PROMPT_LANGUAGES],
        missing_code=code.missing,
    )


def _some_pairs(pairs: Sequence[Example]) -> list[Example]:
    """The first few short ones of each language."""
    short = [p for p in pairs if len(p.targets) <= MAX_PAIR_CHARACTERS and len(p.targets.encode()) >= MIN_PAIR_BYTES]
    languages = dict.fromkeys(pair.language for pair in short)
    return [pair for language in languages for pair in [p for p in short if p.language == language][:NUM_PAIRS]]


def _first(examples: Sequence[Example], languages: Sequence[str]) -> list[Example]:
    """The first example of each of these languages that has one."""
    found = (next((example for example in examples if example.language == code), None) for code in languages)
    return [example for example in found if example is not None]


def beginning(articles: Sequence[Article], language: str) -> str:
    """The first words of the prompt article."""
    article = next(a for a in articles if a.language == language and a.number == PROMPT_ARTICLE)
    text = article.paragraphs[0][:PROMPT_CHARACTERS]
    return text.rpartition(" ")[0] or text[: PROMPT_CHARACTERS // 4]
