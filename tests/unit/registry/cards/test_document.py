"""What people wrote can be told from what the registry made, whatever they wrote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgument
from services.registry.cards.document import END, GENERATED, INHERITED, Section, parse, write, write_own

TITLES = ["Intended use", "Evaluation"]
FENCED = "```python\n## no heading\n<script>\n```"


def own_of(text):
    return parse(text, "seedling", TITLES).own


def test_text_is_told_by_its_headings():
    text = "# seedling\n\nFor gardens.\n\n## evaluation ##\n\nGood.\n\n### Better\n\nBest.\n\n## Thanks\n\nTo all.\n"
    assert own_of(text) == {"": "For gardens.", "Evaluation": "Good.\n\n### Better\n\nBest.", "Thanks": "To all."}


def test_a_heading_in_code_is_none():
    assert own_of(f"## Evaluation\n{FENCED}\n\n~~~\n```\n## no\n~~~\nend") == {
        "Evaluation": f"{FENCED}\n\n~~~\n```\n## no\n~~~\nend"
    }


def test_a_whole_card_gives_back_what_people_wrote_and_tells_the_rest():
    sections = [
        Section(title="", text="For gardens.", generated="`seedling@1`"),
        Section(title="Intended use", inherited="All.", generated=f"None.\n\n{FENCED}"),
        Section(title="Evaluation", text=FENCED, generated="| a |\n| --- |"),
    ]
    parsed = parse(write("license: mit", "seedling", sections), "seedling", TITLES)
    assert parsed.front_matter == "license: mit"
    assert parsed.own == {"": "For gardens.", "Evaluation": FENCED}
    assert parsed.marked == [(section.title, mark, body) for section in sections for mark, body in section.marked]


TEXT = st.text(st.sampled_from("a #`~-<>!\n\t.é"), max_size=60)


@given(st.dictionaries(st.sampled_from(["", *TITLES, "Thanks"]), TEXT), TEXT)
def test_what_is_kept_reads_as_what_was_kept_also_within_a_card(texts, generated):
    try:
        own = own_of(write_own(texts))
    except InvalidArgument:
        return
    assert own_of(write_own(own)) == own
    titles = dict.fromkeys(["", *TITLES, *own])
    sections = [Section(title=title, text=own.get(title, ""), generated="made") for title in titles]
    assert own_of(write("a: 1", "seedling", sections)) == own


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused_with_a_reason(text):
    try:
        own = own_of(text)
    except InvalidArgument:
        return
    assert own_of(write_own(own)) == own


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a\n<script>alert(1)</script>", r"before the first heading, line 2: '<script' is HTML"),
        ("## Evaluation\n<img src=x onerror=y>", "section 'Evaluation', line 1: '<img' is HTML"),
        ("<!-- open", "is HTML"),
        ("</div>", "is HTML"),
        ("---\nnot closed", "begins with '---'"),
        ("<?php", "is HTML"),
        ("## A <b>\nx", "heading 'A <b>' is not allowed"),
        ("## Evaluation\n```\nopen", "section 'Evaluation': a code block has no end"),
        ("~~~\n```\n", "a code block has no end"),
        ("## A\nx\n## a\ny\n## A\nz", "section 'A' is there twice"),
        ("## Evaluation\nx\n## EVALUATION\ny", "section 'Evaluation' is there twice"),
        (f"{GENERATED}\nforged", "without '<!-- registry: end -->'"),
        (f"```\n{GENERATED.replace('made', 'maid')}\n```", "marks what the registry makes"),
        (END, "marks what the registry makes"),
        ("a\0b", r"control character '\\x00'"),
        ("a\x1bb", "control character"),
        ("x" * 65_537, "65537 characters; write at most 65536"),
        ("".join(f"## {number}\nx\n" for number in range(31)), "31 sections are too many"),
        ("## " + "x" * 101 + "\ny", "is not allowed; write 1 to 100"),
    ],
)
def test_what_would_break_a_card_is_refused(text, reason):
    with pytest.raises(InvalidArgument, match=reason):
        own_of(text)


@pytest.mark.parametrize("text", ["a < b", "1 <2", "<https://example.org>", "a & b", FENCED, "x <= y", "**b** `c` $d$"])
def test_plain_markdown_is_let_pass(text):
    assert own_of(text) == {"": text}


def test_marks_of_both_kinds_are_taken_out():
    text = f"mine\n\n{INHERITED}\n\ntheirs\n\n{END}\n\n{GENERATED}\n\nits\n\n{END}\n"
    parsed = parse(text, "seedling", TITLES)
    assert parsed.own == {"": "mine"}
    assert parsed.marked == [("", INHERITED, "theirs"), ("", GENERATED, "its")]
