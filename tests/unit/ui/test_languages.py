"""The languages that the playground offers."""

from ui.languages import BY_CODE, LANGUAGES, label_of
from ui.markup import direction


def test_there_are_46_natural_and_13_programming_languages():
    assert sum(not language.programming for language in LANGUAGES) == 46
    assert sum(language.programming for language in LANGUAGES) == 13
    assert len(BY_CODE) == len(LANGUAGES)


def test_every_language_has_a_prompt_that_can_be_continued():
    for language in LANGUAGES:
        assert language.prompts, language.name
        assert all(prompt.strip() for prompt in language.prompts), language.name


def test_all_but_four_natural_languages_have_the_declaration():
    without = {language.code for language in LANGUAGES if not language.programming and not language.article}
    assert without == {"as", "ki", "or", "tum"}


def test_right_to_left_languages_have_prompts_that_begin_right_to_left():
    for language in LANGUAGES:
        expected = "rtl" if language.rtl else "ltr"
        assert {direction(prompt) for prompt in language.prompts} == {expected}, language.name


def test_a_language_is_labelled_in_its_own_script_and_in_english():
    assert BY_CODE["ar"].label == "العربية · Arabic"
    assert BY_CODE["en"].label == "English"


def test_labels_are_found_by_code_by_tag_and_by_programming_name():
    assert label_of("zht") == label_of("zh-hant") == "繁體中文 · Chinese, traditional"
    assert label_of("C#") == "C#"
    assert label_of("tlh") == "tlh"


def test_examples_are_beginnings_and_then_tasks():
    examples = dict(BY_CODE["fr"].examples)
    assert examples["Translate"] == "Everyone has the right to education.\nIn French:"
    assert examples["Which language?"].endswith("\nThe language of this sentence is:")
    assert [prompt for _, prompt in BY_CODE["rust"].examples] == list(BY_CODE["rust"].prompts)
    assert "Translate" not in dict(BY_CODE["en"].examples)
