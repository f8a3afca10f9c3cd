import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cleaning.personal import harmless, personal
from services.trainer.cleaning import pii


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to ada.l@mail.example.org, please", "write to PI:EMAIL, please"),
        ("<ada@example.fr>", "<PI:EMAIL>"),
        ("ask @ada_l or (@grace99)", "ask PI:USER or (PI:USER)"),
        ("from 192.168.10.7 10.0.0.1 to 2001:db8::8a2e:370:7334", "from PI:IP_ADDRESS PI:IP_ADDRESS to PI:IP_ADDRESS"),
        ("call +33 6 12 34 56 78", "call +33 6 12 34 56 78"),  # digits one at a time are not the published notation
        ("call +33 612 345 678 or 00254-712-345-678.", "call PI:PHONE or PI:PHONE."),
        ("key sk12ab34cd56ef78 end", "key PI:KEY end"),
        ("card 4000-1234-5678-9010", "card PI:KEY"),
        ("id d41d8cd98f00b204e9800998ecf8427e.", "id PI:KEY."),
        ("plate AB12 CD34 EF56, number 123456789", "plate PI:KEY, number PI:KEY"),
        ("联系 ada@example.org。", "联系 PI:EMAIL。"),
    ],
)
def test_personal_information_gives_way_to_its_tag(text: str, redacted: str):
    assert pii.redact(text, pii.find(text)) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "on 2019-03-12, 12/03/2019 and 1998-2004",
        "1967-1975 Su residencia, 1988-1991 V",
        "version 1.2.3 of 12 500 at 12:30",
        "a jack-of-all-trades-and-none, in /usr/local/lib/python/site",
        "five @ six, any of @/./+/-/_",
        "std::vector<int>",
        "at 12:30:45, a ratio of 4:3:2, :: alone",
        "part 256.10.0.1 of 10.0.300.1",  # no byte holds 256
    ],
)
def test_what_only_looks_like_it_stays(text: str):
    assert pii.find(text) == []


def test_only_the_wanted_tags_are_redacted_and_those_of_roots_leave_phones():
    text = "ada@example.org +254 71 234 5678"
    assert pii.redact(text, pii.find(text, pii.PUBLISHED_TAGS)) == "PI:EMAIL +254 71 234 5678"


@pytest.mark.parametrize("piece", ["-abcd", "123", "a.", "a:", "1 234", "@a.", "+33 12 ", "1:", "A1-"])
def test_no_text_takes_exponential_time(piece: str):
    pii.find(piece * 3000 + "é")  # a pattern that tries every split would not end before the test is stopped


@given(st.integers(0, 1 << 30), st.sampled_from(pii.TAGS))
def test_whatever_is_planted_is_found_alone_and_under_its_tag(seed: int, tag: str):
    value = personal(tag, random.Random(seed))
    text = f"before {value}, after"
    assert [(text[span.start : span.end], span.tag) for span in pii.find(text)] == [(value, tag)]


@given(st.integers(0, 1 << 30))
def test_what_is_planted_as_harmless_is_left(seed: int):
    assert pii.find(f"before {harmless(random.Random(seed))} after") == []


@given(st.text("@a.b1:-+ \n", max_size=80))
def test_spans_never_overlap_and_lie_in_the_text(text: str):
    spans = pii.find(text)
    assert all(0 <= span.start < span.end <= len(text) for span in spans)
    assert all(first.end <= second.start for first, second in pairwise(spans))
