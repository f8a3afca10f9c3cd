"""Rows of JSONL artifacts become texts; a bad row is named."""

import json
from pathlib import Path

import pytest

from services.common import corpus as corpus_module
from services.common.artifacts import ArtifactStore
from services.common.corpus import Corpus
from services.common.errors import InvalidArgument, NotFound


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")


def test_texts_and_both_sides_of_pairs_are_read_and_counted(store: ArtifactStore) -> None:
    rows = [{"text": "é", "language": "fr"}, {"inputs": "a", "targets": "bc"}, {"prompt": "d", "completion": "e"}]
    first = store.write_bytes("\n".join(json.dumps(row) for row in rows).encode())
    second = store.write_bytes(b'{"text": ""}\r\n')
    corpus = Corpus(store, [first, second])
    assert list(corpus) == ["é", "a", "bc", "d", "e", ""]
    assert (corpus.num_texts, corpus.num_bytes) == (6, 7)


def test_rows_that_chunks_of_the_store_cut_are_whole() -> None:
    chunks = [b'{"te', b'xt": "a"}\n{"text"', b': "b"}', b"\n"]
    assert list(corpus_module._lines(chunks)) == [b'{"text": "a"}', b'{"text": "b"}']


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "is list, not an object"),
        (b'{"text": 5}', "'text' is 5, not a string"),
        (b'{"inputs": "a"}', "'targets' is None, not a string"),
        (b'{"other": "a"}', "'inputs' is None, not a string"),
        (b'{"text": "\\ud800"}', "half a surrogate pair"),
    ],
)
def test_a_bad_row_is_named_with_its_number_and_reason(store: ArtifactStore, row: bytes, reason: str) -> None:
    digest = store.write_bytes(b'{"text": "fine"}\n' + row + b'\n{"text": "fine"}\n')
    with pytest.raises(InvalidArgument, match=f"dataset {digest} row 2.*{reason}"):
        list(Corpus(store, [digest]))


def test_a_dataset_that_is_not_there_is_not_found(store: ArtifactStore) -> None:
    with pytest.raises(NotFound):
        list(Corpus(store, ["sha256:" + "0" * 64]))
