"""`python -m examples.language_identifier`: train the classifier that cleaning uses; table what it confuses.

Training is counting: the same text gives the same file. --check compares instead of writing.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from py3langid.langid import MODEL_FILE
from py3langid.langid import LanguageIdentifier as GeneralIdentifier

from benchmarks.cleaning.speech import ARTICLES
from examples.demo.corpus import DEV_ARTICLES, TEST_ARTICLES, Article
from examples.language_identifier import texts
from examples.language_identifier.confusion import Confusion, cell, confusions, total
from services.trainer.cleaning.identifier import MODEL, Identifier
from services.trainer.cleaning.languages import NATURAL, OTHER
from services.trainer.cleaning.ngram_model import NgramModel, softmax, train

FOLDER = Path(".cache/language_identifier")
TRAINING_ARTICLES = frozenset(range(31)) - TEST_ARTICLES - DEV_ARTICLES
TEMPERATURES = np.arange(0.1, 1.55, 0.05)
# The languages of `benchmarks.cleaning`, whose words come from articles that training leaves out.
SPOKEN = (
    *("ar", "bn", "ca", "en", "es", "eu", "fr", "gu", "hi", "id", "ig", "kn"),
    *("lg", "mr", "pa", "pt", "sw", "ta", "te", "ur", "vi", "wo", "yo", "zh-hans"),
)


def learn(articles: dict[str, list[Article]], names: dict[str, list[str]]) -> NgramModel:
    """Count the training articles and every second name; choose the temperature on the development articles."""
    learnt = {code: texts.paragraphs(found, TRAINING_ARTICLES) for code, found in articles.items()}
    model = train(learnt | {code: found[::2] for code, found in names.items()})
    held_out = {code: texts.paragraphs(found, DEV_ARTICLES) for code, found in articles.items()}
    pairs = [(model.classes.index(code), text) for code, found in held_out.items() for text in found]
    right, evidence = np.array([place for place, _ in pairs]), np.stack([model.evidence(text) for _, text in pairs])
    losses = [-np.log(softmax(evidence / t)[np.arange(len(right)), right] + 1e-12).mean() for t in TEMPERATURES]
    return replace(model, temperature=float(TEMPERATURES[np.argmin(losses)]))


def tables(tell: Callable[[str], str], articles: dict[str, list[Article]], others: dict[str, list[str]]) -> str:
    """Held-out articles whole and by paragraph, and texts of another kind, for all languages."""
    held_out = {code: texts.paragraphs(found, TEST_ARTICLES) for code, found in articles.items()}
    whole = {
        code: [article.text for article in found if article.number in TEST_ARTICLES] for code, found in articles.items()
    }
    columns = [confusions(found, tell) for found in (whole, held_out, others)]
    by_code = [{one.language: one for one in column} for column in columns]
    ours = [[one for one in column if one.language in NATURAL] for column in columns]
    strangers = [[one for one in column if one.language not in NATURAL] for column in columns]
    lines = [["language", "articles", "paragraphs", "other text"], ["---"] * 4]
    lines += [[code, *(cell(column.get(code)) for column in by_code)] for code in NATURAL]
    lines += [["**all of ROOTS**", *map(total, ours)], ["**other languages**", *map(total, strangers)]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + _taken_for_roots(strangers)


def _taken_for_roots(columns: list[list[Confusion]]) -> str:
    """Which languages that are not ROOTS' are taken for one of them."""
    wrong = [
        f"{one.language} for {code} ({number})"
        for column in columns
        for one in column
        for code, number in one.wrong.items()
    ]
    return "Not of ROOTS, and taken for it: " + (", ".join(wrong) or "none") + "."


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.language_identifier", description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the texts are fetched to")
    parser.add_argument("--check", action="store_true", help="say whether the kept model is what training gives")
    parser.add_argument("--alone", action="store_true", help="table the classifier without py3langid's vote")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    articles = texts.articles_of(arguments.folder)
    names = texts.names_of(arguments.folder)
    model = learn(articles, names)
    if arguments.check:
        return _check(model)
    model.save(MODEL)
    spoken = {code: " ".join(texts.paragraphs(articles[code], TEST_ARTICLES | DEV_ARTICLES)) for code in SPOKEN}
    ARTICLES.write_text(json.dumps(spoken, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(
        f"{MODEL}: {len(model.classes)} classes, {MODEL.stat().st_size:,} bytes, temperature {model.temperature:.2f}\n"
    )
    both = Identifier(model, GeneralIdentifier.from_model_file(MODEL_FILE, norm_probs=True))
    others = texts.interface_texts(arguments.folder) | {c: texts.joined(found[1::2], 12) for c, found in names.items()}
    tell = partial(_alone, model) if arguments.alone else partial(_together, both)
    print(tables(tell, articles, others))
    return 0


def _alone(model: NgramModel, text: str) -> str:
    best = model.classes[int(model.probabilities(text).argmax())]
    return best if best in NATURAL else OTHER


def _together(both: Identifier, text: str) -> str:
    return both.guess(text).language


def _check(model: NgramModel) -> int:
    kept = NgramModel.load(MODEL)
    same = (
        kept.classes == model.classes
        and kept.temperature == model.temperature
        and np.array_equal(kept.gain, model.gain)
    )
    print("the same" if same else f"{MODEL} is not what training gives; run without --check")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
