"""Tokens become text: whole characters, the tokens that made them beside them, nothing of a stop string."""

from anthesis.decoding import Vocabulary
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.generation import Piece, Token
from services.gateway.text_stream import TextStream

SPECIAL = {"<s>": 0, "</s>": 1}
BYTES = [bytes([byte]) for byte in range(256)]
TOKENS = [b"<s>", b"</s>", *BYTES, b"ab", "é".encode()[1:] + b"x", b"x" + "人".encode()[:2]]
VOCABULARY = Vocabulary(TOKENS, SPECIAL)


def ids_of(text: str) -> list[int]:
    return [byte + len(SPECIAL) for byte in text.encode()]


def run(ids: list[int], stops: list[str]) -> tuple[list[Piece], bool]:
    stream, pieces = TextStream(VOCABULARY, stops), []
    for token_id in ids:
        pieces.append(stream.feed(Token(token_id)))
        if stream.stopped:
            return pieces, True
    return [*pieces, stream.finish()], stream.stopped


def shown(pieces: list[Piece]) -> tuple[str, list[int], list[int]]:
    tokens = [placed for piece in pieces for placed in piece.tokens]
    text = "".join(piece.text for piece in pieces)
    return text, [placed.token.id for placed in tokens], [placed.text_offset for placed in tokens]


@given(st.lists(st.integers(0, len(TOKENS) - 1)))
def test_without_stop_strings_every_token_and_the_whole_text_are_passed_on(ids: list[int]) -> None:
    pieces, _ = run(ids, [])
    text, passed_ids, offsets = shown(pieces)
    assert text == VOCABULARY.decode(ids, skip_special_tokens=True)
    assert passed_ids == ids
    assert offsets == sorted(offsets)


@given(st.lists(st.integers(0, len(TOKENS) - 1)), st.lists(st.text("abxé人", min_size=1, max_size=3), max_size=3))
def test_the_text_ends_where_the_whole_text_would(ids: list[int], stops: list[str]) -> None:
    whole = VOCABULARY.decode(ids, skip_special_tokens=True)
    places = [whole.find(stop) for stop in stops if stop in whole]
    pieces, stopped = run(ids, stops)
    text, passed_ids, offsets = shown(pieces)
    assert text == whole[: min(places, default=len(whole))]
    assert stopped == bool(places)
    assert passed_ids == ids[: len(passed_ids)]
    if stopped:
        assert all(offset < len(text) for offset in offsets)


def test_a_character_comes_with_all_its_tokens_once_it_is_whole() -> None:
    pieces, _ = run(ids_of("a人"), [])
    assert [piece.text for piece in pieces] == ["a", "", "", "人", ""]
    assert [len(piece.tokens) for piece in pieces] == [1, 0, 0, 3, 0]
    assert shown(pieces)[2] == [0, 1, 1, 1]


def test_tokens_of_the_stop_string_are_not_passed_on() -> None:
    pieces, stopped = run([*ids_of("ok"), 258, *ids_of("!")], ["b"])  # "ok" "ab" "!"
    text, passed_ids, _ = shown(pieces)
    assert stopped
    assert text == "oka"
    assert passed_ids == [*ids_of("ok"), 258]  # "ab" holds text before the stop string


def test_the_end_token_has_no_text_and_is_passed_on() -> None:
    pieces, _ = run([*ids_of("a"), 1], [])
    assert shown(pieces) == ("a", [*ids_of("a"), 1], [0, 1])


def test_a_character_cut_by_the_end_shows_as_replaced() -> None:
    pieces, _ = run(ids_of("人")[:2], [])
    assert shown(pieces)[0] == "\ufffd"
