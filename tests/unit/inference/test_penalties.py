"""What changes single logits, against transformers' processors where it has them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from services.inference import penalties
from services.inference.penalties import has_penalties, penalized
from services.inference.sampling import SamplingParams
from services.inference.sequence import Generation

V = 400
PROMPT = [3, 9, 3, 11, 200]
OUTPUT = [42, 9, 42, 42, 7]


def row_of(seed: int = 0) -> np.ndarray:
    return (3 * np.random.default_rng(seed).standard_normal(V)).astype(np.float32)


def sequence(output: list[int] = OUTPUT, **sampling: object) -> Generation:
    seq = Generation(0, PROMPT, SamplingParams(seed=1, **sampling), 1 << 30)
    for token_id in output:
        seq.append(token_id)
    return seq


def changed(row: np.ndarray, seq: Generation) -> np.ndarray:
    row = row.copy()
    before = row.copy()
    with penalized(row, seq):
        during = row.copy()
    np.testing.assert_array_equal(row, before)  # put back
    return during


def hf(row: np.ndarray, seq: Generation) -> np.ndarray:
    """transformers' processors in the order in which its `generate` applies them."""
    params, processors = seq.sampling, LogitsProcessorList()
    if params.logit_bias:
        processors.append(SequenceBiasLogitsProcessor([[[i], float(bias)] for i, bias in params.logit_bias.items()]))
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.bad_words:
        processors.append(NoBadWordsLogitsProcessor([list(word) for word in params.bad_words]))
    if params.min_tokens:
        stop_ids = sorted(params.stop_ids)
        processors.append(MinNewTokensLengthLogitsProcessor(len(PROMPT), params.min_tokens, stop_ids))
    return processors(torch.tensor([seq.token_ids]), torch.from_numpy(row.copy())[None])[0].numpy()


def test_repetition_penalty_is_that_of_transformers():
    seq = sequence(repetition_penalty=1.8)
    np.testing.assert_allclose(changed(row_of(), seq), hf(row_of(), seq), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 100),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    logit_bias=st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100, width=32), max_size=8),
    bad_words=st.lists(
        st.sampled_from([(42,), (42, 7), (7, 42), (42, 42, 7, 9), (200, 42, 9, 42, 42, 7, 5), (8, 7, 6), (7, 6)]),
        unique=True,
        max_size=6,
    ),
    min_tokens=st.integers(0, 8),
    stop_ids=st.frozensets(st.integers(0, V - 1), min_size=1, max_size=3),
)
def test_any_combination_equals_transformers_processors(seed: int, bad_words: list, **sampling):
    seq = sequence(bad_words=tuple(bad_words), **sampling)
    np.testing.assert_allclose(changed(row_of(seed), seq), hf(row_of(seed), seq), atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("planted", ["negative logits divided", "output alone", "bad words by their last id"])
def test_a_planted_error_is_noticed(planted: str, monkeypatch: pytest.MonkeyPatch):
    def assert_equals_transformers() -> None:
        seq = sequence(repetition_penalty=1.5, bad_words=((8, 5), (42, 7)))
        np.testing.assert_allclose(changed(row_of(), seq), hf(row_of(), seq), rtol=1e-6)

    def divide(logits: np.ndarray, ids: np.ndarray, penalty: float) -> None:
        logits[ids] /= np.float32(penalty)

    right = penalties._penalize_repetition
    name, wrong = {
        "negative logits divided": ("_penalize_repetition", divide),
        "output alone": (
            "_penalize_repetition",
            lambda logits, ids, penalty: right(logits, ids[len(PROMPT) :], penalty),
        ),
        "bad words by their last id": ("_ends_with", lambda tokens, ids: True),
    }[planted]
    assert_equals_transformers()
    monkeypatch.setattr(penalties, name, wrong)
    with pytest.raises(AssertionError):
        assert_equals_transformers()


def test_presence_and_frequency_count_the_output_alone():
    row = row_of()
    presence = row - changed(row, sequence(presence_penalty=0.5))
    frequency = row - changed(row, sequence(frequency_penalty=0.25))
    both = row - changed(row, sequence(presence_penalty=0.5, frequency_penalty=-0.25))
    expected_presence, expected_frequency = np.zeros(V), np.zeros(V)
    expected_presence[[42, 9, 7]] = 0.5
    expected_frequency[[42, 9, 7]] = 0.75, 0.25, 0.25
    np.testing.assert_allclose(presence, expected_presence, atol=1e-6)
    np.testing.assert_allclose(frequency, expected_frequency, atol=1e-6)
    np.testing.assert_allclose(both, expected_presence - expected_frequency, atol=1e-6)


def test_nothing_is_penalized_before_there_is_output():
    row = row_of()
    np.testing.assert_array_equal(changed(row, sequence([], presence_penalty=2.0, frequency_penalty=2.0)), row)


def test_a_bad_word_is_banned_only_where_it_would_be_completed():
    row = row_of()
    banned = {
        tuple(output): np.isneginf(changed(row, sequence(output, bad_words=((11, 200, 5), (4,))))).nonzero()[0].tolist()
        for output in ([], [5], [11], [11, 200])
    }
    assert banned == {(): [4, 5], (5,): [4], (11,): [4], (11, 200): [4, 5]}  # the prompt ends with 11, 200


def test_a_word_longer_than_the_sequence_is_not_yet_there():
    row = row_of()
    np.testing.assert_array_equal(changed(row, sequence([], bad_words=((1, *PROMPT, 5),))), row)


@pytest.mark.parametrize(("num_output", "banned"), [(0, True), (2, True), (3, False), (5, False)])
def test_stop_ids_are_banned_until_there_are_min_tokens(num_output: int, banned: bool):
    seq = sequence(OUTPUT[:num_output], min_tokens=3, stop_ids=frozenset({17, 18}))
    during = changed(row_of(), seq)
    assert np.isneginf(during[[17, 18]]).all() == banned
    assert np.isfinite(np.delete(during, [17, 18])).all()


def test_the_row_is_put_back_also_when_drawing_fails():
    row, before = row_of(), row_of()
    with pytest.raises(ZeroDivisionError), penalized(row, sequence(repetition_penalty=2.0, bad_words=((4,),))):
        raise ZeroDivisionError
    np.testing.assert_array_equal(row, before)


def test_the_sequence_grows_on_after_it_was_looked_into():
    seq = sequence(repetition_penalty=2.0)
    with penalized(row_of(), seq):
        seq.append(5)
    assert seq.token_ids[-1] == 5


def test_a_plain_request_has_no_penalties():
    assert not has_penalties(SamplingParams(seed=0, top_k=5, top_p=0.5, stop_ids=frozenset({1})))
    for asked in (
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"logit_bias": {1: 1.0}},
        {"bad_words": ((1,),)},
        {"min_tokens": 1},
    ):
        assert has_penalties(SamplingParams(seed=0, **asked))
