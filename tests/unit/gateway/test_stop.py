"""A text in pieces ends where the whole text would."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.stop import StopStrings

letters = st.sampled_from("ab人")
stops_lists = st.lists(st.text(letters, min_size=1, max_size=4), max_size=4)
pieces_lists = st.lists(st.text(letters, max_size=5), max_size=12)


def until_stop(text: str, stops: list[str]) -> str:
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else text


def run(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    """What is passed on piece by piece (nothing after the stop), and whether it stopped."""
    matcher, passed = StopStrings(stops), []
    for piece in pieces:
        passed.append(matcher.feed(piece))
        if matcher.found:
            return passed, True
    passed.append(matcher.finish())
    return passed, matcher.found


@given(stops_lists, pieces_lists)
def test_pieces_give_what_the_whole_text_gives(stops: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    passed, found = run(stops, pieces)
    assert "".join(passed) == until_stop(text, stops)
    assert found == any(stop in text for stop in stops)


@given(stops_lists, pieces_lists)
def test_no_more_is_held_back_than_might_start_a_stop_string(stops: list[str], pieces: list[str]) -> None:
    matcher = StopStrings(stops)
    seen = passed = ""
    for piece in pieces:
        seen += piece
        passed += matcher.feed(piece)
        if matcher.found:
            return
        held = seen[len(passed) :]
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "passed"),
    [
        (["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", ""]),
        (["END"], ["xE", "N", "x"], ["x", "", "ENx", ""]),
        (["b", "abc"], ["a", "b", "c"], ["", "", ""]),
        (["b", "abc"], ["a", "b", "d"], ["", "", "a"]),
        (["x"], ["x"], [""]),
        ([], ["a", "b"], ["a", "b", ""]),
    ],
)
def test_known_cases(stops: list[str], pieces: list[str], passed: list[str]) -> None:
    assert run(stops, pieces)[0] == passed


def test_a_stop_string_cut_off_by_the_end_is_text() -> None:
    assert run(["END"], ["the E", "N"]) == (["the ", "", "EN"], False)
