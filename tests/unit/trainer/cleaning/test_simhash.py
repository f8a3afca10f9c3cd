from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.cleaning import simhash

TEXT = "The boats leave the harbour in the morning, and those who stay behind mend the nets. " * 8


def distance(first: str, second: str, language: str = "sw") -> int:
    hashes = [simhash.simhash(text, language) for text in (first, second)]
    assert None not in hashes
    return (hashes[0] ^ hashes[1]).bit_count()


def test_case_and_punctuation_change_nothing():
    assert distance(TEXT, TEXT.upper().replace(",", " -").replace(" -", "")) == 0


def test_a_small_change_moves_few_bits_and_another_text_many():
    numbered = " ".join(f"{n} nets and {n * n} boats" for n in range(200))
    assert distance(numbered, numbered.replace("77 nets", "77 sails")) <= simhash.MAX_DISTANCE
    assert distance(numbered, TEXT) > 3 * simhash.MAX_DISTANCE


def test_english_is_cut_into_words_and_other_languages_into_characters():
    words = [f"word{n}" for n in range(50)]
    assert simhash.simhash("boats leave", "en") is None
    assert simhash.simhash("boats leave", "sw") is not None
    assert distance(" ".join(words), "  ".join(words), "en") == 0
    assert distance(" ".join(words), "  ".join(words), "sw") > 0


def test_a_text_shorter_than_a_shingle_is_not_compared():
    assert simhash.simhash("a, b!", "sw") is None


def test_long_texts_are_summed_in_pieces_and_give_the_same():
    text = " ".join(f"{n}" for n in range(9000))
    whole = simhash.simhash(text, "sw")
    size, simhash._CHUNK = simhash._CHUNK, 1000
    try:
        assert simhash.simhash(text, "sw") == whole
    finally:
        simhash._CHUNK = size


# Hashes in clusters, or no two would be near.
near_hashes = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4, unique=True).flatmap(
    lambda centres: st.lists(
        st.builds(
            lambda centre, bits: centre ^ sum(1 << bit for bit in bits),
            st.sampled_from(centres),
            st.sets(st.integers(0, 63), max_size=4),
        ),
        min_size=2,
        max_size=30,
        unique=True,
    )
)


@settings(deadline=None)  # the first example pays for imports
@given(near_hashes)
def test_near_pairs_are_all_pairs_within_four_bits_and_no_others(hashes: list[int]):
    assert found(hashes) == brute(hashes)


def found(hashes: list[int]) -> set[tuple[int, int]]:
    return {(int(i), int(j)) for i, j in simhash.near_pairs(np.array(hashes, np.uint64))}


def brute(hashes: list[int]) -> set[tuple[int, int]]:
    pairs = combinations(range(len(hashes)), 2)
    return {(i, j) for i, j in pairs if (hashes[i] ^ hashes[j]).bit_count() <= 4}


def test_were_one_block_more_to_be_equal_pairs_would_be_missed(monkeypatch: pytest.MonkeyPatch):
    hashes = [0, 1 | 1 << 20 | 1 << 40 | 1 << 60]  # a bit in each of four blocks
    assert found(hashes) == {(0, 1)}
    monkeypatch.setattr(simhash, "combinations", lambda blocks, size: combinations(blocks, size + 1))
    assert found(hashes) == set()
