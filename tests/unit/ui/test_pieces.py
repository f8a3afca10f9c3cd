"""Tokens grouped where characters end."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ui.pieces import Fertility, group_tokens

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]))


@given(TEXT, st.lists(st.integers(0, 400)))
def test_any_text_cut_anywhere_is_drawn_whole(text, cuts):
    data = text.encode()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    tokens = [data[start:end] for start, end in itertools.pairwise(edges)]
    groups = group_tokens(range(len(tokens)), tokens)
    assert "".join(group.text for group in groups) == text
    assert [piece.data for group in groups for piece in group.pieces] == tokens
    assert [piece.id for group in groups for piece in group.pieces] == list(range(len(tokens)))


@given(TEXT)
def test_a_token_is_shared_exactly_when_it_holds_part_of_a_character(text):
    groups = group_tokens(list(text.encode()), [bytes([byte]) for byte in text.encode()])
    assert [group.shared for group in groups] == [len(character.encode()) > 1 for character in text]


def test_parts_of_a_character_are_shown_in_hexadecimal():
    (group,) = group_tokens([7, 8], [b"\xe0\xa4", b"\x95"])
    assert group.text == "क"
    assert [piece.hex for piece in group.pieces] == ["E0 A4", "95"]
    assert all(piece.text is None for piece in group.pieces)


def test_a_text_cut_inside_a_character_ends_with_a_replacement_character():
    (group,) = group_tokens([1], [b"\xe0\xa4"])
    assert group.text == "\ufffd"


def test_fertility_counts_words_characters_and_bytes():
    how_fine = Fertility.of("नमस्ते दुनिया", 10)
    assert (how_fine.words, how_fine.characters, how_fine.num_bytes) == (2, 13, 37)
    assert how_fine.tokens_per_word == 5.0


def test_fertility_of_nothing_is_zero():
    assert Fertility.of("", 0).tokens_per_word == 0.0
