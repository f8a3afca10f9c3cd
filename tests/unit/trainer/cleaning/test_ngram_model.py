from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.cleaning.ngram_model import MAX_N, NUM_BUCKETS, NgramModel, buckets, train

TEXTS = {
    "a": ["the boats leave the harbour in the morning and come back by noon"],
    "b": ["les bateaux quittent le port le matin et sont de retour à midi"],
}


def test_a_text_is_taken_for_what_it_was_learnt_from():
    model = train(TEXTS)
    for place, (text,) in enumerate(TEXTS.values()):
        assert model.probabilities(text).argmax() == place
        assert model.probabilities(text.upper() + " 1, 2!").argmax() == place


def test_a_text_without_letters_may_be_anything():
    assert np.ptp(train({name: texts * 2 for name, texts in TEXTS.items()}).probabilities("")) < 0.5


def test_a_kept_model_is_the_trained_one_and_holds_no_pickle(tmp_path: Path):
    model, path = train(TEXTS, temperature=0.4), tmp_path / "model.npz"
    model.save(path)
    kept = NgramModel.load(path)
    assert (kept.classes, kept.temperature) == (model.classes, 0.4)
    assert np.array_equal(kept.gain, model.gain)
    assert np.array_equal(kept.floor, model.floor)
    with np.load(path, allow_pickle=False) as arrays:
        assert all(array.dtype.kind != "O" for array in arrays.values())


def test_training_twice_gives_the_same_bytes(tmp_path: Path):
    for name in ("one.npz", "two.npz"):
        train(TEXTS).save(tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


@given(st.text(max_size=40))
def test_any_text_has_its_ngrams_in_the_buckets(text: str):
    found = buckets(text)
    assert ((found >= 0) & (found < NUM_BUCKETS)).all()


def test_a_text_has_an_ngram_of_each_length_at_each_place():
    assert len(buckets("abcde")) == sum(len(" abcde ") - n + 1 for n in range(1, MAX_N + 1))
