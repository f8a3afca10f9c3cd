import numpy as np
import pytest
from datatrove.data import Document
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.cleaning.documents import DECLARED, LANGUAGE
from services.trainer.cleaning.exact_duplicates import MatchExact, WriteExactSignatures
from services.trainer.cleaning.near_duplicates import MatchSimHashes
from services.trainer.cleaning.signatures import SIGNATURE, Signatures


def signed(*hashes_and_languages: tuple[int, int]) -> Signatures:
    return np.array([(value, 0, n, language) for n, (value, language) in enumerate(hashes_and_languages)], SIGNATURE)


@pytest.fixture
def near(tmp_path) -> MatchSimHashes:
    return MatchSimHashes(str(tmp_path), str(tmp_path))


def dropped(near: MatchSimHashes, signatures: Signatures) -> list[int]:
    return near.repeated(signatures)["document"].tolist()


def test_of_documents_near_each_other_the_first_stays(near: MatchSimHashes):
    assert dropped(near, signed((0b1111, 7), (0b1110, 7), (2**64 - 1, 7), (0b1111, 7))) == [1, 3]


def test_what_is_near_through_others_is_one_group(near: MatchSimHashes):
    chain = [(1 << 4 * n) - 1 for n in (2, 0, 1)]  # 8 bits apart, by way of one in between
    assert dropped(near, signed(*((value, 7) for value in chain))) == [1, 2]


def test_languages_are_compared_apart(near: MatchSimHashes):
    assert dropped(near, signed((5, 7), (5, 8), (5, 7))) == [2]


@settings(deadline=None)  # it writes files
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2)), max_size=20), st.integers(1, 4))
def test_shares_of_any_number_of_tasks_find_the_same(tmp_path_factory, pairs, num_tasks: int):
    folder = str(tmp_path_factory.mktemp("matches"))
    signatures = signed(*pairs)
    for matching in (MatchSimHashes(folder, folder), MatchExact(folder, folder)):
        shares = matching.share(signatures, num_tasks)
        found = [matching.repeated(signatures[shares == task])["document"] for task in range(num_tasks)]
        assert sorted(np.concatenate(found)) == sorted(matching.repeated(signatures)["document"])


@pytest.mark.parametrize(
    ("language", "same"),
    [("sw", ["mashua 3, nyavu!", "mashua... 12 nyavu"]), ("Python", ["a = 1\n\n\tb", "a = 1\n    b"])],
)
def test_what_makes_documents_the_same_depends_on_whether_they_are_code(tmp_path, language: str, same: list[str]):
    step = WriteExactSignatures(str(tmp_path))
    other = "a = 2 b" if language == "Python" else "Mashua nyavu"
    metadata = {DECLARED: language, LANGUAGE: language}
    first, second, third = (step.signature(Document(text=text, id="", metadata=metadata)) for text in (*same, other))
    assert first == second != third
