from examples.demo.corpus import Article, documents, parse, passages, previous, split
from examples.demo.languages import MISSING, ROOTS

HTML = """<!doctype html><html lang="xx"><head><title>No</title></head><body><h1>No</h1>
<header><h2>Preamble</h2><p>Whereas\n  one,</p><p> </p></header>
<article data-number="1"><h2>Article 1</h2><p>Free &amp; equal.</p></article>
<article data-number="2"><h2>Article 2</h2><ol><li><p>First.</p></li><li><p>Second.</p></li></ol></article>
<article data-number="3"><p>No heading.</p></article></body></html>"""


def article(number: int, language: str = "en") -> Article:
    return Article(language=language, number=number, heading=f"Article {number}", paragraphs=(f"{language} {number}",))


def test_headings_and_paragraphs_of_each_article_are_read_and_the_title_is_not():
    assert [(a.number, a.heading, a.paragraphs) for a in parse("xx", HTML)] == [
        (0, "Preamble", ("Whereas one,",)),
        (1, "Article 1", ("Free & equal.",)),
        (2, "Article 2", ("First.", "Second.")),
        (3, "", ("No heading.",)),
    ]


def test_an_articles_text_ends_in_a_newline_with_or_without_a_heading():
    assert [a.text for a in parse("xx", HTML)][2:] == ["Article 2\nFirst.\nSecond.\n", "No heading.\n"]


def test_held_out_articles_are_never_in_the_training_split():
    training, held_out = split([article(n) for n in range(31)], frozenset({5, 11}))
    assert {a.number for a in held_out} == {5, 11}
    assert {a.number for a in training}.isdisjoint({5, 11})
    assert len(training) + len(held_out) == 31


def test_the_context_is_the_nearest_earlier_article_that_is_not_held_out():
    articles = [article(n, language) for language in ("en", "fr") for n in range(7)]
    before = previous(articles, article(6), frozenset({5}))
    assert before is not None
    assert (before.language, before.number) == ("en", 4)
    assert previous(articles, article(0), frozenset({5})) is None


def test_no_document_holds_a_held_out_article_and_each_passage_comes_with_the_article_before_it():
    articles = [article(n, language) for language in ("en", "fr") for n in range(31)]
    held_out = frozenset({5, 11})
    rows = documents(split(articles, held_out)[0])
    assert [row["language"] for row in rows] == ["en", "fr"]
    assert "fr 4\nArticle 6\n" in rows[1]["text"]
    for passage in passages(articles, held_out):
        assert all(passage.text not in row["text"] for row in rows)
        assert any(passage.context in row["text"] for row in rows)


def test_all_46_languages_are_known_and_the_four_without_a_declaration_are_named():
    assert len(ROOTS) == len({language.code for language in ROOTS}) == 46
    assert MISSING == ("Assamese", "Kikuyu", "Odia", "Chitumbuka")
