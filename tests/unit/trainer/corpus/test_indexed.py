"""Megatron's .bin/.idx, byte for byte; a file that is not right is refused before anything is read through it."""

import resource
import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from services.trainer.corpus.indexed import ShardWriter, bin_path, dtype_for, idx_path, read_header, read_lengths
from services.trainer.failure import JobFailure
from tests.support.corpora import numbered, write_shard

dtypes = st.sampled_from(["uint16", "int32"])
some_documents = st.lists(st.lists(st.integers(0, 60_000), min_size=0, max_size=30), min_size=0, max_size=20)
HEADER_BYTES = 34


def read_documents(prefix: Path) -> list[list[int]]:
    tokens = np.fromfile(bin_path(prefix), read_header(prefix).dtype)
    return [part.tolist() for part in np.split(tokens, np.cumsum(read_lengths(prefix))[:-1])] if len(tokens) else []


def megatron_writes(prefix: Path, documents: list[list[int]], dtype: str) -> None:
    builder = IndexedDatasetBuilder(str(bin_path(prefix)), getattr(np, dtype))
    for document in documents:
        builder.add_document(np.array(document, dtype), [len(document)])
    builder.finalize(str(idx_path(prefix)))


@given(documents=some_documents, dtype=dtypes)
@settings(deadline=None)
def test_what_was_written_is_read(tmp_path_factory, documents, dtype):
    prefix = write_shard(tmp_path_factory.mktemp("shard") / "a.b", documents, dtype)
    assert read_lengths(prefix).tolist() == [len(document) for document in documents]
    assert list(chain(*read_documents(prefix))) == list(chain(*documents))
    assert sorted(path.name for path in prefix.parent.iterdir()) == ["a.b.bin", "a.b.idx"]


@given(documents=some_documents, dtype=dtypes)
@settings(max_examples=20, deadline=None)
def test_both_files_are_those_of_megatron_core_byte_for_byte(tmp_path_factory, documents, dtype):
    folder = tmp_path_factory.mktemp("shard")
    ours = write_shard(folder / "ours", documents, dtype)
    # Its builder takes empty documents; torch tensors of none it does not.
    megatron_writes(folder / "theirs", documents, dtype)
    assert bin_path(ours).read_bytes() == bin_path(folder / "theirs").read_bytes()
    assert idx_path(ours).read_bytes() == idx_path(folder / "theirs").read_bytes()


def test_megatron_core_reads_ours(tmp_path):
    documents = numbered([5, 1, 300, 2], first=1000)
    dataset = IndexedDataset(str(write_shard(tmp_path / "ours", documents)))
    assert [dataset[i].tolist() for i in range(len(dataset))] == documents


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64", "uint16"])
def test_ours_reads_every_dtype_of_megatron_core(tmp_path, dtype):
    documents = numbered([5, 1, 60, 2])
    megatron_writes(tmp_path / "theirs", documents, dtype)
    assert read_documents(tmp_path / "theirs") == documents


def test_documents_of_several_sequences_are_read_as_their_sequences(tmp_path):
    builder = IndexedDatasetBuilder(str(tmp_path / "sentences.bin"), np.int32)
    builder.add_document(np.arange(7), [3, 4])
    builder.finalize(str(tmp_path / "sentences.idx"))
    assert read_lengths(tmp_path / "sentences").tolist() == [3, 4]


def test_small_vocabularies_take_two_bytes_a_token():
    assert (dtype_for(65_499), dtype_for(65_500)) == (np.dtype("uint16"), np.dtype("int32"))


def overwrite(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


# Of a shard of 3 documents: lengths at 34, places at 46, boundaries at 70.
@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (0, b"TNTIDX\x00\x00", "no index of Megatron's mmap format"),
        (9, struct.pack("<Q", 2), "has version 2, not 1"),
        (17, b"\x06", "has dtype code 6"),
        (17, b"\x08", "begins at byte 20, but the one before it ends at byte 10"),
        (18, struct.pack("<Q", 4), "4 documents and 4 boundaries take"),
        (18, struct.pack("<Q", 1 << 62), "documents and 4 boundaries take"),
        (34, struct.pack("<i", -5), "document 0 has -5 tokens"),
        (34, struct.pack("<i", 6), "document 1 begins at byte 20, but the one before it ends at byte 24"),
        (42, struct.pack("<i", 1 << 30), "describes 4294967328 bytes or more of tokens, but its .bin has 68"),
        (46, struct.pack("<q", -4), "document 0 begins at byte -4"),
        (62, struct.pack("<q", 1 << 62), "document 2 begins at byte 4611686018427387904"),
        (70, struct.pack("<q", 1), "boundaries that do not go from 0 to 3"),
        (94, struct.pack("<q", 2), "boundaries that do not go from 0 to 3"),
        (78, struct.pack("<q", 3), "boundaries that go backwards"),
    ],
)
def test_a_damaged_index_is_refused_with_its_file_and_a_remedy(tmp_path, offset, data, message):
    prefix = write_shard(tmp_path / "shard", numbered([5, 3, 9]))
    overwrite(idx_path(prefix), offset, data)
    with pytest.raises(JobFailure, match=message) as failed:
        read_lengths(prefix)
    assert failed.value.code == "CORRUPT_SHARD"
    assert str(idx_path(prefix)) in failed.value.message
    assert "bring both files of the shard from a good copy" in failed.value.message


@given(offset=st.integers(0, 101), value=st.integers(0, 255))
@settings(deadline=None)
def test_no_changed_byte_of_an_index_makes_it_describe_other_tokens(tmp_path_factory, offset, value):
    prefix = write_shard(tmp_path_factory.mktemp("shard") / "shard", numbered([5, 3, 9]))
    overwrite(idx_path(prefix), offset, bytes([value]))
    try:
        lengths = read_lengths(prefix)
    except JobFailure:
        return
    assert lengths.tolist() == [5, 3, 9]


@pytest.mark.parametrize("file", [bin_path, idx_path])
@pytest.mark.parametrize("change", [-1, -60, 1])
def test_a_file_that_was_cut_or_has_grown_is_refused(tmp_path, file, change):
    prefix = write_shard(tmp_path / "shard", numbered([5, 3, 9]))
    content = file(prefix).read_bytes()
    file(prefix).write_bytes(content[:change] if change < 0 else content + b"\x00")
    with pytest.raises(JobFailure) as failed:
        read_lengths(prefix)
    assert failed.value.code == "CORRUPT_SHARD"


@pytest.mark.parametrize("file", [bin_path, idx_path])
def test_half_a_shard_is_refused(tmp_path, file):
    prefix = write_shard(tmp_path / "shard", numbered([5]))
    file(prefix).unlink()
    with pytest.raises(JobFailure, match=r"is not there; a shard is a .bin and a .idx"):
        read_lengths(prefix)


@pytest.fixture
def little_room():
    """Files of this process may not exceed 64 kB: writing more fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_shard_that_found_no_room_leaves_nothing(tmp_path, little_room):
    writer = ShardWriter(tmp_path / "shard", np.dtype("int32"))
    with pytest.raises(OSError, match="File too large"):
        for _ in range(10):
            writer.add(np.zeros(10_000, np.int32), np.array([10_000], np.int32))
        writer.close()
    writer.abandon()
    assert list(tmp_path.iterdir()) == []
