"""Documents to windows: every token a target once an epoch, in an order that depends on nothing but the key."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.corpus.indexed import bin_path
from services.trainer.corpus.stream import TokenStream
from services.trainer.failure import JobFailure
from tests.support.corpora import numbered, write_shard

lengths = st.lists(st.lists(st.integers(0, 15), min_size=1, max_size=12), min_size=1, max_size=3)


def write_shards(folder, lengths_of_shards):
    shards, first = [], 0
    for number, found in enumerate(lengths_of_shards):
        shards.append(write_shard(folder / f"shard{number}", numbered(found, first)))
        first += sum(found)
    return shards, first


@given(lengths=lengths, size=st.integers(1, 6), epoch=st.integers(0, 3), max_runs=st.sampled_from([1, 3, 1 << 20]))
@settings(max_examples=40, deadline=None)
def test_an_epoch_learns_every_token_once_but_its_first_and_a_rest(tmp_path_factory, lengths, size, epoch, max_runs):
    shards, num_tokens = write_shards(tmp_path_factory.mktemp("shards"), lengths)
    if num_tokens <= size:
        with pytest.raises(JobFailure, match="fewer than a window"):
            TokenStream(shards, size, "key", max_runs=max_runs)
        return
    stream = TokenStream(shards, size, "key", max_runs=max_runs)
    windows = [stream.window(epoch * stream.num_windows + i) for i in range(stream.num_windows)]
    targets = Counter(token for window in windows for token in window[1:].tolist())
    assert set(targets.values()) == {1}
    assert num_tokens - 1 - (size - 1) <= len(targets) <= num_tokens - 1
    assert {len(window) for window in windows} == {size + 1}


@given(lengths=lengths)
@settings(max_examples=20, deadline=None)
def test_within_a_document_a_window_reads_on(tmp_path_factory, lengths):
    shards, num_tokens = write_shards(tmp_path_factory.mktemp("shards"), lengths)
    ends = set(np.cumsum([length for shard in lengths for length in shard]) - 1)  # the last token of each document
    if num_tokens <= 3:
        return
    stream = TokenStream(shards, 3, "key")
    for number in range(2 * stream.num_windows):
        window = stream.window(number).tolist()
        for token, following in pairwise(window):
            assert following == token + 1 or token in ends


def test_epochs_shuffle_documents_and_windows_anew(tmp_path):
    shards, _ = write_shards(tmp_path, [[7] * 40, [9] * 30])
    stream = TokenStream(shards, 16, "key")
    epochs = [
        [tuple(stream.window(epoch * stream.num_windows + i).tolist()) for i in range(stream.num_windows)]
        for epoch in range(2)
    ]
    assert len(set(epochs[0]) & set(epochs[1])) < 3  # other neighbours, not only another order
    other = TokenStream(shards, 16, "another key")
    assert epochs[0] != [tuple(other.window(i).tolist()) for i in range(other.num_windows)]


def test_a_window_is_the_same_whatever_was_read_before(tmp_path):
    shards, _ = write_shards(tmp_path, [[7] * 40])
    stream = TokenStream(shards, 16, "key")
    there = [stream.window(number).tolist() for number in range(40)]
    assert [TokenStream(shards, 16, "key").window(number).tolist() for number in reversed(range(40))] == there[::-1]


def test_many_documents_take_bounded_memory_and_stay_beside_their_neighbours(tmp_path):
    shards, _ = write_shards(tmp_path, [[2] * 500])
    stream = TokenStream(shards, 9, "key", max_runs=50)
    assert len(stream._run_lengths) == 50
    window = stream.window(3)
    assert (np.diff(window) == 1).sum() >= 7  # cut in at most one or two places


def test_a_split_takes_its_documents_and_the_rest_are_for_another(tmp_path):
    shards, num_tokens = write_shards(tmp_path, [[3] * 12, [3] * 8])
    found = []
    for split in ((0.0, 0.7), (0.7, 1.0)):
        stream = TokenStream(shards, 2, "key", split=split)
        found.append({token for i in range(stream.num_windows) for token in stream.window(i).tolist()})
    assert found[0] <= set(range(42))
    assert found[1] <= set(range(42, num_tokens))
    assert len(found[0]) + len(found[1]) >= num_tokens - 2


def test_a_shard_cut_short_after_it_was_opened_is_an_error_not_a_crash(tmp_path):
    shards, _ = write_shards(tmp_path, [[50]])
    stream = TokenStream(shards, 16, "key")
    bin_path(shards[0]).write_bytes(b"")
    with pytest.raises(JobFailure, match=r"shard0.bin is shorter than when training began") as failed:
        stream.window(0)
    assert failed.value.code == "CORRUPT_SHARD"
