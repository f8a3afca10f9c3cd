"""Oracle: the published code's own definitions, written out naively here."""

import random
import unicodedata
from collections import Counter
from string import punctuation

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.cleaning import published, words
from services.trainer.cleaning.languages import NATURAL
from services.trainer.cleaning.thresholds import OSCAR, thresholds_of

ENGLISH = (
    "In the morning the boats leave the harbour for the islands, and those who stay behind mend the nets and talk "
    "about what the weather will be. When it is good they are back by noon with what they have caught, and the whole "
    "town is at the quay to see it."
)


def test_thirteen_languages_have_cut_offs_of_their_own_and_the_others_the_default():
    assert len(OSCAR) == 14
    assert thresholds_of("fr").word_repetition == 0.13
    assert thresholds_of("ur").word_ngram == 7
    assert thresholds_of("zh-hans") == thresholds_of("zh-hant") == OSCAR["zh"]
    assert thresholds_of("sw") == OSCAR["default"]
    own = {language for language in NATURAL if thresholds_of(language) is not OSCAR["default"]}
    assert own == {"ar", "bn", "ca", "en", "es", "eu", "fr", "hi", "id", "pt", "ur", "vi", "zh-hans", "zh-hant"}


def test_those_languages_and_no_others_have_stop_words():
    listed = {language for language in NATURAL if words.stopwords(language)}
    assert listed == {language for language in NATURAL if thresholds_of(language) is not OSCAR["default"]}


def test_a_good_text_is_kept():
    assert published.reason_to_drop(ENGLISH, "en") is None


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("number_of_words", "The boats leave the harbour."),
        ("character_repetition", ENGLISH + " ha" * 80),
        ("word_repetition", f"{ENGLISH} {ENGLISH}"),
        ("special_characters", f"{ENGLISH} {''.join(random.Random(0).choices(punctuation, k=400))}"),
        ("stopwords", " ".join(f"{a}{b}" for a in ("boat", "net", "town", "wind") for b in "abcdefghij")),
    ],
)
def test_each_published_filter_drops_what_it_is_for(reason: str, text: str):
    assert published.reason_to_drop(text, "en") == reason


def test_flagged_words_drop_a_text_where_a_list_is_given_and_not_where_none_is():
    assert published.reason_to_drop(ENGLISH, "en", {"boats", "harbour"}) == "flagged_words"  # 2 of 54 words; 1 % may be
    assert published.reason_to_drop(ENGLISH, "en", {"whale"}) is None
    assert published.reason_to_drop(ENGLISH, "en") is None


def test_what_was_not_applied_is_said_of_flagged_words_by_language():
    assert published.not_applied([])["flagged_words"] == "no list was given"
    assert published.not_applied(["fr", "en"])["flagged_words"] == "in languages other than en, fr: no list was given"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_words_are_looked_up_alike_however_their_marks_are_written(form: str):
    text = unicodedata.normalize(form, "những người đã ở trong nhà")
    assert published.stopword_share(text, "vi") > 0.5
    assert published.share_in(words.split(text, "vi"), {"những người"}, " ") == pytest.approx(1 / 6)


def test_a_language_without_stop_words_is_judged_without_them():
    text = " ".join(f"{a}{b}" for a in ("mashua", "wavu", "mji", "upepo") for b in "abcdefghij")
    assert published.reason_to_drop(text, "sw") is None


def test_addresses_and_long_words_go_where_published_and_stay_where_not():
    text = "Read www.example.org  now " + "x" * 60
    assert published.tidy(text, "en") == "Read now"
    assert published.tidy(text, "sw") == text


def test_a_long_word_that_is_short_without_its_marks_stays():
    assert published.tidy("so " + "." * 30 + "long", "en") == "so " + "." * 30 + "long"
    assert published.tidy("so " + "." * 30, "en") == "so"


def test_a_chinese_character_is_a_word_and_pairs_of_them_are_looked_up():
    assert words.split("人人生而自由。2024", "zh-hans") == list("人人生而自由")
    assert words.pairs(["a", "b", "c"], "") == ["ab", "bc"]


@pytest.mark.parametrize("word", ["\u0939\u093f\u0902\u0926\u0940", "বাংলা", "yorùbá", "été", "ʻokina", "一上"])
def test_letters_and_their_signs_are_special_in_no_language(word: str):
    assert published.special_share(word) == 0
    assert words.strip(word) == word


@pytest.mark.parametrize("special", [*"!۔।。«$+^0٣Ⅷ½ \t\u00a0\u200b\u0000\ue000", "❤️", "👩🏽‍🚀", "🇸🇳", "1️⃣"])
def test_marks_symbols_numbers_spaces_controls_and_emoji_are_special(special: str):
    assert published.special_share(special) == 1
    assert words.strip(special) == ""


def test_words_are_stripped_of_special_characters_and_emoji_and_lowered():
    assert words.split("«Boats»,\tleave! 🚤 (2024)\nNOW…", "en") == ["boats", "leave", "now"]


@given(st.text("ab c", max_size=60), st.integers(1, 5))
def test_character_repetition_is_the_published_one(text: str, n: int):
    counts = sorted(Counter(text[i : i + n] for i in range(len(text) - n + 1)).values(), reverse=True)
    num_once = sum(count == 1 for count in counts)
    top = min(int(np.sqrt(len(counts))), len(counts) - num_once)
    expected = sum(counts[:top]) / sum(counts) if counts else 0
    assert published.character_repetition(text, n) == pytest.approx(expected)


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 4))
def test_word_repetition_is_the_published_one(found: list[str], n: int):
    grams = [" ".join(found[i : i + n]) for i in range(len(found) - n + 1)]
    repeated = sum(grams.count(gram) > 1 for gram in grams)
    assert published.word_repetition(found, n) == pytest.approx(repeated / len(grams) if grams else 0)
