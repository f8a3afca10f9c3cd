"""The corpus is the same for a seed, and scores fall where cleaning finds nothing, or takes everything."""

from collections import Counter

import pytest

from benchmarks.cleaning import cut_offs
from benchmarks.cleaning.corpus import Planted, corpus
from benchmarks.cleaning.score import Outcome, Score, scores
from services.trainer.cleaning import lines
from services.trainer.cleaning.pii import TAGS
from services.trainer.cleaning.thresholds import OSCAR, oscar_code


@pytest.fixture(scope="module")
def truth() -> list[Planted]:
    return corpus(1)


def by_kind(truth: list[Planted], outcome: Outcome) -> dict[str, Score]:
    return {score.kind: score for score in scores(truth, outcome)}


def test_a_seed_gives_one_corpus_and_another_seed_another(truth: list[Planted]):
    assert corpus(1) == truth
    assert corpus(2) != truth


def test_it_has_the_languages_and_the_kinds_that_it_promises(truth: list[Planted]):
    assert len({document.language for document in truth if document.path is None}) >= 20
    assert len({document.language for document in truth if document.path is not None}) >= 5
    kinds = Counter(document.kind for document in truth)
    assert min(kinds.values()) >= 10
    assert {tag for document in truth for tag in document.pii.values()} == set(TAGS)


def test_no_row_tells_what_was_planted_in_it(truth: list[Planted]):
    assert {key for document in truth for key in document.row()} == {"id", "text", "language", "path", "license"}


def test_cleaning_that_does_nothing_has_no_recall(truth: list[Planted]):
    kept = {document.id: {"text": document.text, "language": document.language} for document in truth}
    found = by_kind(truth, Outcome(kept, {}, {lines.BOILERPLATE: [], lines.FOREIGN: []}))
    assert found.pop("language of a document").recall == found.pop("good document stays").recall == 1
    assert {score.recall for score in found.values()} == {0}


def test_cleaning_that_takes_everything_has_no_precision(truth: list[Planted]):
    removed = [(document.id, line) for document in truth for line in document.text.split("\n")]
    dropped = {document.id: "duplicate" for document in truth}
    found = by_kind(truth, Outcome({}, dropped, {lines.BOILERPLATE: removed, lines.FOREIGN: removed}))
    assert found["duplicate"].recall == 1
    assert found["duplicate"].precision < 0.6
    assert found["boilerplate line"].precision < 0.2
    assert found["good document stays"].recall == 0


def test_a_value_left_in_the_text_and_a_tag_too_many_are_both_seen(truth: list[Planted]):
    document = next(document for document in truth if document.pii)
    (email,) = (value for value, tag in document.pii.items() if tag == "EMAIL")
    for text, recall, precision in (
        (document.text.replace(email, "PI:EMAIL"), 1, 1),
        (document.text.replace(email, "PI:EMAIL") + " PI:EMAIL", 1, 0.5),
        (document.text + " PI:EMAIL", 0, 0),
    ):
        kept = {document.id: {"text": text, "language": document.language}}
        found = by_kind([document], Outcome(kept, {}, {lines.BOILERPLATE: [], lines.FOREIGN: []}))
        score = found["personal information: EMAIL"]
        assert (score.recall, score.precision) == (recall, precision)


def test_good_documents_are_measured_against_the_published_cut_offs_and_planted_lines_are_not(truth: list[Planted]):
    texts = cut_offs.good_texts([1])
    assert set(map(oscar_code, texts)) == {*OSCAR} - {"default"}
    planted = {line for document in truth for line in (*document.boilerplate, *document.foreign)}
    assert not planted & {line for found in texts.values() for text in found for line in text.split("\n")}
    row = dict(zip(cut_offs.HEADER, cut_offs.row("en", ["the boats of the town!", "boat"]), strict=True))
    assert row["below the cut-off"] == "1"
    assert row["above the cut-off"] == "0"
    assert row["their share: median, most"] == f"{5 / 22 / 2:.3f}, {5 / 22:.3f}"
