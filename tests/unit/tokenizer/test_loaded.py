"""A loaded tokenizer: any text comes back, offsets are exact; other kinds of tokenizers are served as they can be."""

import json
from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from services.common.errors import FailedPrecondition, InvalidArgument
from services.tokenizer.loaded import LoadedTokenizer
from tests.support.tokenizers import TEXTS, small_tokenizer_json

DIGEST = "sha256:" + "0" * 64
any_text = st.text() | st.text(st.sampled_from("ab é人😀\u0301\u0000\ufffd</s> \n")) | st.sampled_from(TEXTS)


@cache
def bloom_like() -> LoadedTokenizer:
    return LoadedTokenizer(DIGEST, small_tokenizer_json(800).encode())


def load(tokenizer: Tokenizer) -> LoadedTokenizer:
    return LoadedTokenizer(DIGEST, tokenizer.to_str().encode())


@cache
def word_piece() -> LoadedTokenizer:
    vocab = {"[UNK]": 0, "hello": 1, "wor": 2, "##ld": 3, "é": 4}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return load(tokenizer)


def unigram() -> LoadedTokenizer:
    return load(Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], 0, False)))


@given(any_text)
@example("\x00")
@example("\u0301\u0300 lone marks")
@example("\ufffd\ufeff\uffff\U0010ffff")
@example("👩‍👩‍👧‍👦 🇫🇷")
@example("<unk><s></s><pad>")
@example("\r\n\u2028\u0085")
def test_any_text_comes_back_exactly(text: str) -> None:
    (encoding,) = bloom_like().encode([text])
    assert bloom_like().decode(encoding.ids, skip_special_tokens=False) == text
    assert bloom_like().decode(encoding.ids, skip_special_tokens=True) == text


@given(any_text)
def test_byte_offsets_cut_the_text_into_the_tokens_bytes(text: str) -> None:
    (encoding,) = bloom_like().encode([text], with_offsets=True)
    data, tokens = text.encode(), bloom_like().vocabulary().tokens
    assert [data[start:end] for start, end in encoding.byte_offsets] == [tokens[i] for i in encoding.ids]
    assert [start for start, _ in encoding.byte_offsets] == [0, *(end for _, end in encoding.byte_offsets)][
        : len(encoding.ids)
    ]


@given(any_text)
def test_char_offsets_are_the_smallest_that_cover_the_bytes(text: str) -> None:
    (encoding,) = bloom_like().encode([text], with_offsets=True)
    for (byte_start, byte_end), (start, end) in zip(encoding.byte_offsets, encoding.char_offsets, strict=True):
        assert len(text[:start].encode()) <= byte_start < len(text[: start + 1].encode())
        assert len(text[: end - 1].encode()) < byte_end <= len(text[:end].encode())


def test_a_token_with_part_of_a_character_lies_inside_it() -> None:
    (encoding,) = bloom_like().encode(["a𓀀"], with_offsets=True)  # a hieroglyph that no merge covers
    assert encoding.byte_offsets == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]
    assert encoding.char_offsets == [(0, 1), (1, 2), (1, 2), (1, 2), (1, 2)]


@pytest.mark.parametrize("text", ["<unk>", "<s>", "</s>", "<pad>", "a</s>b", "</s></s>"])
def test_text_that_spells_a_special_token_is_text(text: str) -> None:
    (encoding,) = bloom_like().encode([text])
    assert not {0, 1, 2, 3} & set(encoding.ids)


def test_no_special_token_is_added_even_where_the_file_adds_one() -> None:
    tokenizer = Tokenizer.from_str(small_tokenizer_json())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    (encoding,) = load(tokenizer).encode(["Hello"])
    assert not {1, 2} & set(encoding.ids)


def test_truncation_and_padding_in_the_file_are_ignored() -> None:
    texts = ["Hello world, Hello world", "a"]
    tokenizer = Tokenizer.from_str(small_tokenizer_json())
    counts = [len(tokenizer.encode(text).ids) for text in texts]
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8)
    assert load(tokenizer).count(texts) == counts


@pytest.mark.parametrize("token_id", [800, 250_700])
def test_decode_names_an_id_that_the_tokenizer_lacks(token_id: int) -> None:
    with pytest.raises(InvalidArgument, match=f"id {token_id} is not in the vocabulary"):
        bloom_like().decode([5, token_id], skip_special_tokens=False)


def test_the_vocabulary_has_every_byte_and_the_names_of_special_tokens() -> None:
    vocabulary = bloom_like().vocabulary()
    assert vocabulary.special_ids == {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}
    assert vocabulary.tokens[:4] == (b"<unk>", b"<s>", b"</s>", b"<pad>")
    assert set(vocabulary.tokens) >= {bytes([byte]) for byte in range(256)}
    assert len(vocabulary) == 800


def test_an_id_that_a_gap_leaves_out_decodes_to_an_error() -> None:
    saved = json.loads(small_tokenizer_json())
    saved["added_tokens"].append(saved["added_tokens"][0] | {"id": 600, "content": "<extra>"})
    saved["model"]["vocab"]["<extra>"] = 600
    tokenizer = LoadedTokenizer(DIGEST, json.dumps(saved).encode())
    assert tokenizer.decode([600], skip_special_tokens=False) == "<extra>"
    with pytest.raises(InvalidArgument, match="id 555 is not"):
        tokenizer.decode([555], skip_special_tokens=False)


@pytest.mark.parametrize("make", [word_piece, unigram])
def test_a_tokenizer_whose_tokens_are_not_bytes_has_no_table(make) -> None:
    with pytest.raises(FailedPrecondition, match="is not byte-level"):
        make().vocabulary()


def test_a_word_piece_tokenizer_still_encodes_and_decodes() -> None:
    (encoding,) = word_piece().encode(["é hello world"], with_offsets=True)
    assert encoding.ids == [4, 1, 2, 3]
    assert encoding.char_offsets == [(0, 1), (2, 7), (8, 11), (11, 13)]
    assert encoding.byte_offsets == [(0, 2), (3, 8), (9, 12), (12, 14)]
    assert word_piece().decode([1, 2, 3], skip_special_tokens=False) == "hello world"
    with pytest.raises(InvalidArgument, match="id 9 is not"):
        word_piece().decode([9], skip_special_tokens=False)


def test_a_byte_level_tokenizer_that_normalizes_gets_offsets_into_the_original_text() -> None:
    tokenizer = Tokenizer.from_str(small_tokenizer_json())
    tokenizer.normalizer = normalizers.Lowercase()
    (encoding,) = load(tokenizer).encode(["É"], with_offsets=True)
    assert set(encoding.char_offsets) == {(0, 1)}
    assert set(encoding.byte_offsets) == {(0, 2)}


def test_an_added_token_that_is_not_special_has_its_text_for_bytes() -> None:
    tokenizer = Tokenizer.from_str(small_tokenizer_json())
    tokenizer.add_tokens([AddedToken("😀 word", normalized=False)])
    loaded = load(tokenizer)
    (encoding,) = loaded.encode(["a😀 wordé"], with_offsets=True)
    assert loaded.decode(encoding.ids, skip_special_tokens=True) == "a😀 wordé"
    assert (1, 10) in encoding.byte_offsets


@pytest.mark.parametrize("data", [b"", b"{}", b"\x00\xff", b"[1]"])
def test_an_artifact_that_is_no_tokenizer_is_refused(data: bytes) -> None:
    with pytest.raises(FailedPrecondition, match=f"{DIGEST} is not a tokenizer"):
        LoadedTokenizer(DIGEST, data)


def test_a_long_line_without_a_split_is_encoded() -> None:
    text = "人" * 200_000
    assert bloom_like().decode(bloom_like().encode([text])[0].ids, skip_special_tokens=False) == text
