"""Confusions are counted rightly, and training is a pure function of the texts."""

from collections import Counter

import numpy as np

from examples.demo.corpus import DEV_ARTICLES, TEST_ARTICLES, Article
from examples.language_identifier.__main__ import TRAINING_ARTICLES, learn
from examples.language_identifier.confusion import Confusion, cell, confusions, total

WORDS = {"en": "the boats leave the harbour at dawn", "fr": "les bateaux quittent le port au matin"}


def articles(language: str) -> list[Article]:
    return [
        Article(
            language=language, number=number, heading="", paragraphs=(f"{WORDS[language]} {WORDS[language][number:]}",)
        )
        for number in range(31)
    ]


def test_a_confusion_tells_right_undetermined_and_wrong_apart():
    told = {"a": "en", "b": "undetermined", "c": "fr", "d": "fr"}
    (found,) = confusions({"en": list(told)}, told.__getitem__)
    assert (found.right, found.undetermined, found.wrong) == (1, 1, {"fr": 2})
    assert cell(found) == "1 of 4, 1 undetermined, 2 taken for fr"
    assert total([found]) == "25.0% of 4, 25.0% undetermined, 50.0% wrong"


def test_a_language_outside_roots_is_right_when_told_to_be_outside():
    found = Confusion("de", Counter({"other": 3, "en": 1}))
    assert (found.right, found.wrong) == (3, {"en": 1})


def test_held_out_articles_are_not_trained_on():
    assert TRAINING_ARTICLES.isdisjoint(TEST_ARTICLES | DEV_ARTICLES)
    assert len(TRAINING_ARTICLES) == 22


def test_learning_twice_gives_the_same_model_which_tells_its_languages_apart():
    texts = {language: articles(language) for language in WORDS}
    first, second = learn(texts, {"or": ["ଆଫଗାନିସ୍ତାନ", "ଅଲ୍ବାନୀୟା"]}), learn(texts, {"or": ["ଆଫଗାନିସ୍ତାନ", "ଅଲ୍ବାନୀୟା"]})
    assert np.array_equal(first.gain, second.gain)
    assert first.temperature == second.temperature
    assert [first.classes[first.probabilities(text).argmax()] for text in WORDS.values()] == list(WORDS)
