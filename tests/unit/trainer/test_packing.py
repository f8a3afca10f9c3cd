"""Streams are cut without losing a token; examples are packed whole, with the loss on their targets only."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.trainer.dataset import IGNORE
from services.trainer.packing import cut_stream, fit, pack

ids = st.integers(4, 99)
documents = st.lists(st.lists(ids, min_size=1, max_size=20), min_size=1, max_size=15)
examples = st.lists(
    st.tuples(st.lists(ids, min_size=1, max_size=12), st.lists(ids, min_size=1, max_size=12)), min_size=1, max_size=40
)


@given(documents, st.integers(1, 8), st.data())
def test_a_cut_stream_predicts_every_token_but_the_first_once(docs, length, data):
    first = data.draw(st.integers(1, length))
    windows = list(cut_stream(iter(docs), length, first))
    stream = [token for doc in docs for token in doc]
    assert [token for window in windows for token in window.targets] == stream[1:]
    assert [token for window in windows for token in window.inputs] == stream[:-1]
    assert all(len(window.inputs) <= length for window in windows)


@given(examples, st.integers(24, 40))
def test_packing_keeps_every_example_whole_and_apart(pairs, length):
    found: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for window in pack(iter(pairs), length):
        assert len(window.inputs) == len(window.targets) == len(window.segments) <= length
        for segment in set(window.segments):
            places = [i for i, value in enumerate(window.segments) if value == segment]
            assert places == list(range(places[0], places[-1] + 1))
            inputs = tuple(window.inputs[i] for i in places)
            found[inputs, tuple(window.targets[i] for i in places)] += 1
    wanted = Counter(
        (tuple((inputs + targets)[:-1]), tuple([IGNORE] * (len(inputs) - 1) + targets)) for inputs, targets in pairs
    )
    assert found == wanted


def test_the_loss_is_on_targets_only():
    (window,) = pack(iter([([10, 11, 12], [20, 21, 2])]), 16)
    assert window.inputs == [10, 11, 12, 20, 21]
    assert window.targets == [IGNORE, IGNORE, 20, 21, 2]


def test_a_long_example_loses_its_oldest_input_first_and_then_the_end_of_its_targets():
    assert fit([1, 2, 3, 4], [5, 6], 4) == ([2, 3, 4], [5, 6])
    assert fit([1, 2], [5, 6, 7, 8, 9], 3) == ([2], [5, 6, 7])
    assert fit([1, 2], [3], 16) == ([1, 2], [3])
