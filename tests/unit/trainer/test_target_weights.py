"""Each example counts as one, wherever it lies and however its windows are taken together."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from services.trainer.dataset import IGNORE
from services.trainer.packing import Example, pack
from services.trainer.target_weights import num_examples, target_weights

S = 12
examples = st.lists(
    st.tuples(st.lists(st.integers(4, 9), max_size=6), st.lists(st.integers(4, 9), min_size=1, max_size=6)), max_size=20
)


def windows_of(pairs) -> tuple[np.ndarray, np.ndarray]:
    """Targets and segments, each (B, S)."""
    made = (Example.of([(inputs, False), (expected, True)], end=2) for inputs, expected in pairs)
    packed = list(pack(made, S))
    rows = [
        (w.targets + [IGNORE] * (S - len(w.targets)), w.segments + [max(w.segments) + 1] * (S - len(w.segments)))
        for w in packed
        if w.segments
    ]
    targets, segments = ([row[i] for row in rows] for i in (0, 1))
    return np.array(targets, int).reshape(-1, S), np.array(segments, int).reshape(-1, S)


@settings(deadline=None)
@given(examples)
def test_the_targets_of_an_example_weigh_one_together_and_alike(pairs):
    targets, segments = windows_of(pairs)
    weights = target_weights(targets, segments)
    assert not weights[targets == IGNORE].any()
    for window in range(len(targets)):
        for segment in set(segments[window]):
            of_example = weights[window][(segments[window] == segment) & (targets[window] != IGNORE)]
            np.testing.assert_allclose(of_example, 1 / max(1, len(of_example)), rtol=1e-6)


@settings(deadline=None)
@given(examples)
def test_weights_add_up_to_the_number_of_examples_with_a_target(pairs):
    targets, segments = windows_of(pairs)
    assert num_examples(targets, segments) == len(pairs)
    np.testing.assert_allclose(target_weights(targets, segments).sum(), len(pairs), rtol=1e-5)


@settings(deadline=None)
@given(examples)
def test_windows_taken_together_count_as_apart(pairs):
    targets, segments = windows_of(pairs)
    apart = [(targets[i : i + 1], segments[i : i + 1]) for i in range(len(targets))]
    assert num_examples(targets, segments) == sum(num_examples(*window) for window in apart)
