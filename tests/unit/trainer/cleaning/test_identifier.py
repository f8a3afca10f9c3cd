import random

import pytest

from benchmarks.cleaning.speech import Speaker, articles
from services.trainer.cleaning.identifier import MODEL, UNKNOWN, Guess, identifier
from services.trainer.cleaning.languages import NATURAL, OTHER, UNDETERMINED


def test_the_model_is_small_and_knows_all_but_what_is_said_to_be_unknown():
    assert MODEL.stat().st_size < 1_000_000
    known = {*identifier()._model.classes, *identifier()._general_codes}
    assert set(NATURAL) - known == UNKNOWN


@pytest.mark.parametrize("language", articles())
def test_a_text_of_articles_never_learnt_from_is_told_or_said_to_be_undetermined(language: str):
    rng = random.Random(7)
    speaker = Speaker(language, articles()[language], rng)
    guesses = [identifier().guess(" ".join(speaker.text())) for _ in range(8)]
    assert {guess.language for guess in guesses} <= {language, UNDETERMINED}
    if language == "id":  # py3langid does not tell it from Malay with certainty
        assert all("id" in guess.candidates for guess in guesses)
    else:
        assert sum(guess.language == language for guess in guesses) >= 7


def test_chinese_is_told_by_its_script():
    simplified = "我们认为下列真理是不言而喻的：人人生而平等，他们都有权利得到法律的保护和自由的发展。"
    traditional = "我們認為下列真理是不言而喻的：人人生而平等，他們都有權利得到法律的保護和自由的發展。"
    assert identifier().guess(simplified).language == "zh-hans"
    assert identifier().guess(traditional).language == "zh-hant"


@pytest.mark.parametrize("text", ["", "12 % (2024)", "ok", "la la la la la"])
def test_what_tells_nothing_is_undetermined(text: str):
    assert identifier().guess(text).language == UNDETERMINED


def test_a_language_outside_roots_is_not_taken_for_one_of_its():
    german = "Die Boote verlassen am Morgen den Hafen und kehren gegen Mittag mit ihrem Fang zurück."
    russian = "Лодки выходят из гавани утром и возвращаются к полудню с уловом."
    assert {identifier().guess(text).language for text in (german, russian)} == {OTHER}


def test_an_undetermined_text_comes_with_its_candidates_likeliest_first():
    guess = identifier().guess("Boats and bateaux: le port, the harbour, le matin, the morning, les filets, the nets")
    assert guess.language in (UNDETERMINED, "en", "fr")
    assert guess.candidates
    assert isinstance(guess, Guess)
