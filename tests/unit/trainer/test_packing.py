"""Streams are cut without losing a token; examples are packed whole, with the loss on their targets only."""

from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.dataset import IGNORE
from services.trainer.packing import Example, cut_stream, pack

END = 2
ids = st.integers(4, 99)
documents = st.lists(st.lists(ids, min_size=1, max_size=20), min_size=1, max_size=15)
some_ids = st.lists(ids, min_size=1, max_size=6)
parts = st.lists(st.tuples(some_ids, st.booleans()), min_size=1, max_size=4)
examples = st.lists(parts.map(lambda parts: Example.of(parts, END)), min_size=1, max_size=40)


def pair(inputs: list[int], targets: list[int]) -> Example:
    return Example.of([(inputs, False), (targets, True)], END)


@given(documents, st.integers(1, 8), st.data())
def test_a_cut_stream_predicts_every_token_but_the_first_once(docs, length, data):
    first = data.draw(st.integers(1, length))
    windows = list(cut_stream(iter(docs), length, first))
    stream = [token for doc in docs for token in doc]
    assert [token for window in windows for token in window.targets] == stream[1:]
    assert [token for window in windows for token in window.inputs] == stream[:-1]
    assert all(len(window.inputs) <= length for window in windows)


@given(examples, st.integers(24, 40))
def test_packing_keeps_every_example_whole_and_apart(made, length):
    found: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for window in pack(iter(made), length):
        assert len(window.inputs) == len(window.targets) == len(window.segments) <= length
        for segment in set(window.segments):
            places = [i for i, value in enumerate(window.segments) if value == segment]
            assert places == list(range(places[0], places[-1] + 1))
            inputs = tuple(window.inputs[i] for i in places)
            found[inputs, tuple(window.targets[i] for i in places)] += 1
    assert found == Counter((tuple(example.inputs), tuple(example.targets)) for example in made)


def test_the_loss_is_on_targets_only():
    (window,) = pack(iter([pair([10, 11, 12], [20, 21])]), 16)
    assert window.inputs == [10, 11, 12, 20, 21]
    assert window.targets == [IGNORE, IGNORE, 20, 21, END]


def test_several_parts_are_learnt_each_with_its_end_which_is_no_input():
    example = Example.of([([10, 11], False), ([20], True), ([12, 13], False), ([21, 22], True)], END)
    assert example.inputs == [10, 11, 20, 12, 13, 21, 22]
    assert example.targets == [IGNORE, 20, END, IGNORE, 21, 22, END]


@settings(deadline=None)
@given(parts)
def test_every_learnt_id_but_a_leading_one_is_a_target_once_and_in_order(made):
    example = Example.of(made, END)
    assert example.inputs == [token for tokens, _ in made for token in tokens]
    learnt = [token for tokens, is_learnt in made if is_learnt for token in [*tokens, END]]
    ends_merge = [a[1] and b[1] for a, b in pairwise(made)]  # a learnt part right behind another: its end is learnt
    if made[0][1]:
        learnt = learnt[1:]
    if not any(ends_merge):
        assert [target for target in example.targets if target != IGNORE] == learnt


def test_a_long_example_loses_its_oldest_input_first_and_then_the_end_of_its_targets():
    assert pair([11, 12, 13, 14], [15]).fit(4) == pair([12, 13, 14], [15])
    assert pair([11, 12], [15, 16, 17, 18]).fit(3) == Example([12, 15, 16], [15, 16, 17])
    assert pair([11, 12], [13]).fit(16) == pair([11, 12], [13])
