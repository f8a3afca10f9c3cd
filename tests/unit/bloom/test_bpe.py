"""The tokenizer that TrainTokenizer makes is BLOOM's in kind: its splits, its special tokens, every byte."""

import itertools
import json

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import Split

from bloom import bpe
from tests.support.tokenizers import TEXTS, small_tokenizer_json

# The facts' flattened class: what the nested one means, in a dialect that Python's `regex` reads.
FLAT_PATTERN = regex.compile(r" ?[^(\s|.,!?…。，、।۔،)]+")
SCRIPTS = " \t\n\u00a0\u3000()|[].,!?…。，、।۔،;:'\"-_aZé人の한अगбعא😀\u0301\u200d0٣९"


def pieces_by_flat_pattern(text: str) -> list[str]:
    """`text` cut at both ends of every match."""
    cuts = {0, len(text)} | {position for match in FLAT_PATTERN.finditer(text) for position in match.span()}
    ordered = sorted(cuts)
    return [text[start:end] for start, end in itertools.pairwise(ordered)]


def pieces_by_tokenizer(text: str) -> list[str]:
    split = Split(Regex(bpe.SPLIT_PATTERN), behavior="isolated", invert=False)
    return [piece for piece, _ in split.pre_tokenize_str(text)]


@given(st.text(st.sampled_from(SCRIPTS)) | st.text())
def test_splits_are_those_of_the_flattened_pattern(text: str) -> None:
    assert pieces_by_tokenizer(text) == pieces_by_flat_pattern(text)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Hello world", ["Hello", " world"]),
        (" Hello  world.", [" Hello", " ", " world", "."]),
        ("don't stop-me_now", ["don't", " stop-me_now"]),
        ("(a|b)[c]", ["(", "a", "|", "b", ")", "[c]"]),
        ("人人生而自由，在尊严。", ["人人生而自由", "，", "在尊严", "。"]),
        ("x = 10;\n\ty", ["x", " =", " 10;", "\n\t", "y"]),
    ],
)
def test_known_splits(text: str, pieces: list[str]) -> None:
    assert pieces_by_tokenizer(text) == pieces


def test_a_newline_is_not_taken_for_the_optional_space() -> None:
    assert pieces_by_tokenizer("a\nb") == ["a", "\n", "b"]


def test_the_file_says_what_blooms_says() -> None:
    saved = json.loads(small_tokenizer_json())
    assert saved["normalizer"] is None
    assert saved["pre_tokenizer"] == {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": " ?[^(\\s|[.,!?…。，、।۔،])]+"},
                "behavior": "Isolated",
                "invert": False,
            },
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    assert {token["content"]: token["id"] for token in saved["added_tokens"]} == {
        "<unk>": 0,
        "<s>": 1,
        "</s>": 2,
        "<pad>": 3,
    }
    assert all(token["special"] and not token["normalized"] for token in saved["added_tokens"])


def test_every_byte_is_in_the_vocabulary_whatever_was_trained_on() -> None:
    tokenizer = bpe.train(["a"], vocab_size=512)
    assert tokenizer.get_vocab_size() == 4 + 256
    assert len(tokenizer.encode("\x00é人😀").ids) == 1 + 2 + 3 + 4


def test_training_is_deterministic() -> None:
    assert bpe.train(TEXTS * 3, vocab_size=900).to_str() == bpe.train(iter(TEXTS * 3), vocab_size=900).to_str()


def test_min_frequency_keeps_rare_pairs_apart() -> None:
    texts = ["abab"] * 3
    assert bpe.train(texts, vocab_size=512, min_frequency=100).token_to_id("ab") is None
    assert bpe.train(texts, vocab_size=512, min_frequency=3).token_to_id("ab") is not None


def test_text_full_of_special_tokens_teaches_no_merge_that_spells_one() -> None:
    tokenizer: Tokenizer = bpe.train(["x</s>y <s></s> <pad> </s></s>"] * 50, vocab_size=600)
    tokenizer.encode_special_tokens = True
    assert tokenizer.token_to_id("</s>") == 2
    for text in ("</s>", "x</s>y", "<s>", "<pad>", "</s></s>"):
        assert not {0, 1, 2, 3} & set(tokenizer.encode(text).ids), text
