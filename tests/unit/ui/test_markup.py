"""HTML made of text that others wrote."""

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from ui import markup
from ui.languages import BY_CODE
from ui.pieces import group_tokens

ARABIC, ENGLISH, PYTHON, URDU = (BY_CODE[code] for code in ("ar", "en", "python", "ur"))
HOSTILE = "<script>alert(1)</script><img src=x onerror='alert(2)'> & \" </div>"


class Parsed(HTMLParser):
    """What a browser would see."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.text, self.attributes = [], "", []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\r\x00")))
def test_a_completion_shows_any_text_and_makes_no_tag_of_it(text):
    parsed = Parsed(markup.completion("", text, ENGLISH))
    assert parsed.tags == ["div", "span", "span"]
    assert parsed.text == text


def test_prompt_and_continuation_are_told_apart():
    html = markup.completion("<i>Once", " upon a time", ENGLISH)
    assert '<span class="an-prompt">&lt;i&gt;Once</span><span class="an-added"> upon a time</span>' in html


def test_every_helper_escapes_what_it_is_given():
    pieces = [
        markup.facts([(HOSTILE, HOSTILE)]),
        markup.chips([HOSTILE]),
        markup.card_title(HOSTILE, HOSTILE + "!"),
        markup.heading(HOSTILE, HOSTILE),
        markup.job_title(HOSTILE, HOSTILE, HOSTILE),
        markup.log([(HOSTILE, HOSTILE)]),
        markup.description(HOSTILE),
        markup.token_boxes(group_tokens([1], [HOSTILE.encode()]), ENGLISH, show_ids=True),
        markup.token_boxes(group_tokens([1, 2], ['"><b>é'.encode()[:-1], b"\xa9"]), ENGLISH, show_ids=True),
    ]
    for html in pieces:
        parsed = Parsed(html)
        assert not {"script", "img", "i"} & set(parsed.tags), html
        assert not [name for name, _ in parsed.attributes if name.startswith("on")], html


def test_arabic_reads_right_to_left_whatever_language_is_chosen():
    assert 'dir="rtl"' in markup.completion("يولد", "", ENGLISH)
    assert 'dir="ltr"' in markup.completion("All human", "", ARABIC)
    assert 'dir="rtl"' in markup.token_boxes(group_tokens([5], ["يولد".encode()]), ARABIC, show_ids=False)


def test_direction_is_that_of_the_first_letter():
    assert markup.direction("«123» كتاب book") == "rtl"
    assert markup.direction("1. book كتاب") == "ltr"
    assert markup.direction("…") == "ltr"


def test_the_language_tag_chooses_the_font():
    assert 'lang="ur"' in markup.completion("تمام", "", URDU)


def test_code_is_drawn_as_code():
    assert "an-code" in markup.completion("def f():", "", PYTHON)


def test_white_space_in_tokens_is_visible_and_lines_stay_lines():
    html = markup.token_boxes(group_tokens([1, 2, 3], [b" a", b"\n", b"\tb"]), ENGLISH, show_ids=False)
    parsed = Parsed(html)
    assert parsed.text == "·a↵→b"
    assert parsed.tags.count("br") == 1


def test_ids_stand_under_tokens_only_when_asked_for():
    groups = group_tokens([4711], [b"a"])
    assert Parsed(markup.token_boxes(groups, ENGLISH, show_ids=True)).text == "a4711"
    assert Parsed(markup.token_boxes(groups, ENGLISH, show_ids=False)).text == "a"


def test_neighbouring_tokens_have_different_colours():
    html = markup.token_boxes(group_tokens([1, 2, 3], [b"a", b"b", b"c"]), ENGLISH, show_ids=False)
    assert html.index("an-c0") < html.index("an-c1") < html.index("an-c2")


def test_tokens_that_share_a_character_stand_in_one_frame_with_it():
    html = markup.token_boxes(group_tokens([7, 8], [b"\xe0\xa4", b"\x95"]), ENGLISH, show_ids=False)
    assert html.count('"an-shared"') == 1
    assert Parsed(html).text == "कE0 A495"
