"""Decoding ids one by one gives the text of decoding them at once."""

import pytest
from anthesis.decoding import IncrementalDecoder, Vocabulary
from hypothesis import given
from hypothesis import strategies as st

SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}
# Specials, all bytes, then tokens that start or end inside characters.
TOKENS = [
    *(name.encode() for name in SPECIAL),
    *(bytes([byte]) for byte in range(256)),
    b" the",
    "é".encode(),
    "人".encode(),
    "人".encode()[1:] + "生".encode()[:2],
    "😀".encode()[:3],
    "😀".encode()[3:] + b"a",
    "\ufffd".encode(),
]
VOCABULARY = Vocabulary(TOKENS, SPECIAL)
ids_lists = st.lists(st.integers(0, len(TOKENS) - 1))


def ids_of(text: str) -> list[int]:
    return [byte + len(SPECIAL) for byte in text.encode()]


@given(ids_lists, st.booleans())
def test_id_by_id_equals_all_at_once(ids: list[int], skip: bool) -> None:
    decoder = IncrementalDecoder(VOCABULARY, skip_special_tokens=skip)
    pieces = [decoder.decode([token_id]) for token_id in ids]
    assert "".join(pieces) + decoder.finish() == VOCABULARY.decode(ids, skip_special_tokens=skip)


@given(st.binary())
def test_bytes_that_are_no_utf8_become_what_python_makes_of_the_whole(data: bytes) -> None:
    decoder = IncrementalDecoder(VOCABULARY)
    text = "".join(decoder.decode([byte + 4]) for byte in data) + decoder.finish()
    assert text == data.decode("utf-8", "replace")


@given(st.text(), st.lists(st.integers(1, 5)))
def test_any_text_comes_back_however_its_bytes_are_grouped(text: str, sizes: list[int]) -> None:
    decoder = IncrementalDecoder(VOCABULARY)
    ids, pieces = ids_of(text), []
    for size in sizes:
        pieces.append(decoder.decode(ids[:size]))
        ids = ids[size:]
    pieces.append(decoder.decode(ids))
    assert "".join(pieces) == text
    assert decoder.finish() == ""


def test_an_unfinished_character_is_held_back_until_it_is_whole() -> None:
    decoder = IncrementalDecoder(VOCABULARY)
    assert [decoder.decode([token_id]) for token_id in ids_of("😀!")] == ["", "", "", "😀", "!"]


def test_finish_shows_that_a_character_was_cut_and_leaves_the_decoder_clean() -> None:
    decoder = IncrementalDecoder(VOCABULARY)
    assert decoder.decode(ids_of("é")[:1]) == ""
    assert decoder.finish() == "\ufffd"
    assert decoder.decode(ids_of("ok")) == "ok"


def test_special_tokens_are_skipped_or_shown_by_name() -> None:
    ids = [1, *ids_of("a"), 2]
    assert VOCABULARY.decode(ids, skip_special_tokens=True) == "a"
    assert VOCABULARY.decode(ids) == "<s>a</s>"


def test_a_skipped_special_token_does_not_split_a_character() -> None:
    first, second = ids_of("é")
    assert IncrementalDecoder(VOCABULARY).decode([first, 3, second]) == "é"


@pytest.mark.parametrize("token_id", [-1, len(TOKENS), 250_679])
def test_an_unknown_id_is_named(token_id: int) -> None:
    with pytest.raises(ValueError, match=f"id {token_id} is not in the vocabulary"):
        IncrementalDecoder(VOCABULARY).decode([token_id])


def test_an_id_without_bytes_is_unknown() -> None:
    with pytest.raises(ValueError, match="id 1 is not"):
        Vocabulary([b"a", b""], {}).decode([1])
