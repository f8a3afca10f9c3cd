"""Blends of corpora: their YAML, their shares, and an order that no number of ranks changes."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from services.common.settings import ROOT
from services.trainer.corpus.blend import BlendWindows, parse_blend
from services.trainer.failure import JobFailure
from tests.support.corpora import numbered, write_shard

TWO = "corpora: {fr: {weight: 0.7, files: [fr]}, en: {weight: 0.3, files: [en]}}"


@pytest.fixture
def folder(tmp_path) -> Path:
    write_shard(tmp_path / "fr", numbered([11] * 30))
    write_shard(tmp_path / "en", numbered([13] * 30, first=1000))
    write_shard(tmp_path / "books" / "en", numbered([17] * 10, first=2000))
    return tmp_path


def windows(folder: Path, text: str = TWO, *, seed: int = 1, vocab_size: int = 4000) -> BlendWindows:
    return BlendWindows(parse_blend(text, folder), sequence_length=8, seed=seed, vocab_size=vocab_size)


def test_samples_come_in_the_weights_shares(folder):
    blend = windows(folder)
    sources = [blend.source(sample) for sample in range(1000)]
    assert [sources[:count].count("fr") for count in (10, 100, 1000)] == [7, 70, 700]
    batch = blend.micro_batch(0, 10)
    assert (batch.inputs.shape, batch.inputs.dtype, batch.segments) == ((10, 8), np.int64, None)
    assert [row[0] < 1000 for row in batch.inputs] == [source == "fr" for source in sources[:10]]
    assert (batch.inputs[:, 1:] == batch.targets[:, :-1]).all()
    assert blend.num_targets(5, 10) == 80


def test_a_corpus_of_many_files_is_shared_out_by_file_or_by_length(folder):
    by_file = parse_blend(
        "corpora: {x: {weight: 3, files: {en: 2, books/en: 1}}, fr: {weight: 1, files: [fr]}}", folder
    )
    assert {source.name: source.weight for source in by_file.sources} == {
        "x: en": Fraction(2),
        "x: books/en": Fraction(1),
        "fr": Fraction(1),
    }
    joined = windows(folder, "corpora: {x: {files: [en, books/en]}, fr: {files: [fr]}}")
    sources = [joined.source(sample) for sample in range(joined.num_windows)]
    assert sources.count("fr") == (11 * 30 - 1) // 8
    assert sources.count("x") == (13 * 30 + 17 * 10 - 1) // 8


@pytest.mark.parametrize("dp", [2, 3, 4])
def test_any_number_of_ranks_reads_the_same_samples_in_the_same_order(folder, dp):
    alone = windows(folder).micro_batch(0, 48).inputs
    ranks = [windows(folder) for _ in range(dp)]
    parts = [ranks[position % dp].micro_batch(2 * position, 2).inputs for position in range(24)]  # as train.py does
    assert np.array_equal(np.concatenate(parts), alone)


def test_a_resumed_run_reads_on_where_it_was_also_on_other_ranks(folder):
    undisturbed = windows(folder).micro_batch(0, 40).inputs
    resumed = windows(folder)
    parts = [resumed.micro_batch(start, 4).inputs for start in range(20, 40, 4)]
    assert np.array_equal(np.concatenate(parts), undisturbed[20:])


def test_samples_are_named_by_source_and_place(folder):
    blend = windows(folder)
    sources = [blend.source(sample) for sample in range(20)]
    parts = dict(part.split(": windows ") for part in blend.where(8, 12).split("; "))
    for name in ("fr", "en"):
        before = sources[:8].count(name)
        places = range(before, before + sources[8:].count(name))
        assert parts[name] == ", ".join(map(str, places))
    assert blend.where(0, 100).count(" more") == 1  # of the 70 of one of them


def test_another_seed_is_another_order(folder):
    assert not np.array_equal(
        windows(folder).micro_batch(0, 20).inputs, windows(folder, seed=2).micro_batch(0, 20).inputs
    )


def test_a_corpus_keeps_its_order_when_others_join(folder):
    alone = windows(folder, "corpora: {fr: {files: [fr]}}")
    both = windows(folder)
    of_fr = [sample for sample in range(60) if both.source(sample) == "fr"]
    found = np.concatenate([both.micro_batch(sample, 1).inputs for sample in of_fr])
    assert np.array_equal(found, alone.micro_batch(0, len(of_fr)).inputs)


def test_a_token_that_the_model_has_no_row_for_stops_the_job_by_name(folder):
    with pytest.raises(
        JobFailure, match=r"of en, has a token 1\d\d\d outside the vocabulary of 1000; use the tokenizer"
    ):
        windows(folder, vocab_size=1000).micro_batch(0, 10)


def test_the_fingerprint_follows_weights_and_shards(folder):
    found = {parse_blend(TWO, folder).fingerprint(), parse_blend(TWO.replace("0.7", "0.8"), folder).fingerprint()}
    write_shard(folder / "fr", numbered([11] * 29))
    found.add(parse_blend(TWO, folder).fingerprint())
    assert len(found) == 3


def test_the_preset_of_roots_is_a_blend():
    blend = parse_blend((ROOT / "recipes" / "blends" / "roots.yaml").read_text(), Path("corpora"))
    assert blend.split == (0.0, 0.95)
    assert blend.sources[0].prefixes == (Path("corpora/roots/en"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is no YAML"),
        ("fr: 1", "has no 'corpora'"),
        ("corpora: {}", "has no 'corpora'"),
        ("corpora: {fr: {files: [fr]}}\nspilt: [0, 1]", "has 'spilt'; it takes 'corpora' and 'split'"),
        ("corpora: {fr: [fr]}", "has a corpus 'fr' that is not {weight: …, files: "),
        ("corpora: {fr: {files: []}}", "has a corpus 'fr' that is not"),
        ("corpora: {fr: {wieght: 1, files: [fr]}}", "has a corpus 'fr' that is not"),
        ("corpora: {fr: {weight: 0, files: [fr]}}", "has weight 0 for fr; give a number above 0"),
        ("corpora: {fr: {weight: .inf, files: [fr]}}", "has weight inf for fr"),
        ("corpora: {fr: {weight: a, files: [fr]}}", "has weight 'a' for fr"),
        ("corpora: {fr: {files: {fr: -1}}}", "has weight -1 for fr: fr"),
        (
            "corpora: {fr: {weight: 1, files: [fr]}, en: {files: [en]}}",
            "has no weight for en; give all a weight, or none",
        ),
        ("corpora: {fr: {files: [../fr]}}", "has the path '../fr'; give it relative to"),
        ("corpora: {fr: {files: [/etc/fr]}}", "has the path '/etc/fr'; give it relative to"),
        ("corpora: {fr: {files: [fr]}}\nsplit: [0.5, 0.5]", r"has split \[0.5, 0.5\]; give two numbers"),
        ("corpora: {fr: {files: [fr]}}\nsplit: 0.9", "has split 0.9; give two numbers"),
    ],
)
def test_a_blend_that_cannot_be_meant_is_refused_with_a_remedy(folder, text, message):
    with pytest.raises(JobFailure, match=message) as failed:
        parse_blend(text, folder)
    assert failed.value.code == "BAD_DATA"


def test_shards_of_a_run_that_is_not_finished_are_refused(folder):
    for number in (0, 2):
        write_shard(folder / f"de-{number:05d}-of-00003", numbered([20]))
    with pytest.raises(JobFailure, match="has no shard 1 of 3; run the same tokenizing command again"):
        windows(folder, "corpora: {de: {files: [de]}}")
    write_shard(folder / "de-00001-of-00003", numbered([20]))
    assert windows(folder, "corpora: {de: {files: [de]}}").num_windows == 7
    write_shard(folder / "de-00001-of-00004", numbered([20]))
    with pytest.raises(JobFailure, match=r"has shards of several runs, of \[3, 4\]"):
        windows(folder, "corpora: {de: {files: [de]}}")


def test_a_corpus_that_is_not_there_is_named(folder):
    with pytest.raises(JobFailure, match=r"no shard .*/xx.idx, and none numbered; check the path"):
        windows(folder, "corpora: {xx: {files: [xx]}}")
