from examples.demo.corpus import Article
from examples.demo.parallel import NAMING, TRANSLATION, examples, naming, translation


def article(language: str, number: int, *paragraphs: str) -> Article:
    return Article(language=language, number=number, heading="", paragraphs=paragraphs)


ARTICLES = [
    article("en", 1, "All human beings are free.", "They have reason."),
    article("en", 2, "Everyone is entitled to rights."),
    article("fr", 1, "Tous les êtres humains sont libres.", "Ils ont la raison."),
    article("fr", 2, "Chacun a des droits.", "En outre, chacun."),
]


def test_paragraphs_are_paired_only_where_both_languages_have_as_many():
    pairs = [(example.inputs.split("\n")[0], example.targets) for example in translation(ARTICLES)]
    assert pairs == [
        ("All human beings are free.", " Tous les êtres humains sont libres."),
        ("They have reason.", " Ils ont la raison."),
    ]


def test_english_is_not_translated_into_english():
    assert {example.language for example in translation(ARTICLES)} == {"fr"}


def test_a_sentence_is_paired_with_the_name_of_its_language():
    named = {example.inputs.split("\n")[0]: example.targets for example in naming(ARTICLES)}
    assert named["Chacun a des droits."] == " French"
    assert named["They have reason."] == " English"


def test_sentences_too_short_to_tell_are_left_out():
    assert not list(naming([article("fr", 1, "La loi.")]))


def test_a_row_has_inputs_targets_and_the_language():
    rows = {example.task: example.row() for example in examples(ARTICLES)}
    assert set(rows) == {NAMING, TRANSLATION}
    assert all(set(row) == {"inputs", "targets", "language"} for row in rows.values())
