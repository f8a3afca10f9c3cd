"""From rows to token windows: once per data, tokenizer and options."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from bloom.layout import Layout
from services.common.artifacts import ArtifactStore
from services.trainer.config import DatasetSpec
from services.trainer.corpus.manifest import Manifest
from services.trainer.dataset import IGNORE, Windows
from services.trainer.failure import JobFailure
from services.trainer.prepare import num_steps, prepare
from services.trainer.windows import open_windows
from tests.support.corpora import numbered, write_shard
from tests.support.training import BASE, job_folder, make_run, multitask_rows, text_rows


def prepared(spec):
    return prepare(spec, job_folder(spec))


def windows(spec):
    return Windows(Path(prepared(spec).windows_folder), spec.config.seed)


def decoded(spec, ids):
    store = ArtifactStore(spec.artifacts_url, Path(spec.data_dir) / "cache")
    return Tokenizer.from_file(str(store.local_path(spec.tokenizer_digest))).decode(ids, skip_special_tokens=False)


def test_text_keeps_every_document_with_its_context_before_it(tmp_path):
    rows = [{"text": f" text{i}.", "context": f"context{i}"} for i in range(20)]
    spec = make_run(tmp_path, rows=rows)
    all_windows = windows(spec)
    pairs = all_windows.targets[all_windows.targets != IGNORE]
    text = decoded(spec, [int(all_windows.inputs[0][0]), *map(int, pairs)])
    assert sorted(text.removesuffix("</s>").split("</s>")) == sorted(f"context{i} text{i}." for i in range(20))


def test_text_that_spells_a_special_token_is_text(tmp_path):
    spec = make_run(tmp_path, rows=[{"text": "a</s>b"}])
    found = windows(spec)
    assert list(found.targets[found.targets != IGNORE]).count(2) == 1


def test_multitask_learns_targets_only(tmp_path):
    rows = multitask_rows(30)
    spec = make_run(tmp_path, dataclasses.replace(BASE, sequence_length=256), rows=rows)
    found = windows(spec)
    learnt = found.targets[found.targets != IGNORE].tolist()
    text = decoded(spec, learnt)
    assert sorted(text.removesuffix("</s>").split("</s>")) == sorted(row["targets"] for row in rows)


def test_the_same_job_reads_the_same_tokens_even_with_bpe_dropout(tmp_path):
    config = dataclasses.replace(BASE, steps=None, epochs=2.0, bpe_dropout=0.2)
    spec = make_run(tmp_path, config)
    first, second = prepared(spec), prepared(dataclasses.replace(spec, job_id="again"))
    assert first == second
    found = windows(spec)
    assert len(found.meta.variants) == 2
    starts = np.cumsum([0, *found.meta.variants])
    passes = [found.targets[starts[i] : starts[i + 1]] for i in range(2)]
    assert decoded(spec, sorted(passes[0][passes[0] != IGNORE])) != decoded(
        spec, sorted(passes[1][passes[1] != IGNORE])
    )


def test_steps_follow_from_epochs_and_the_global_batch():
    config = dataclasses.replace(BASE, steps=None, epochs=2.5, micro_batch=2, layout=Layout(dp=2))
    assert num_steps(config, (40,)) == 25
    assert num_steps(dataclasses.replace(config, epochs=0.001), (40,)) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "good"}, {"text": 5}], "row 2 has no string 'text'"),
        ([{"text": ""}], "no token to learn"),
    ],
)
def test_bad_data_fails_the_job_saying_where(tmp_path, rows, message):
    with pytest.raises(JobFailure, match=message) as failed:
        prepared(make_run(tmp_path, rows=rows))
    assert failed.value.code == "BAD_DATA"


def test_a_missing_artifact_fails_the_job(tmp_path):
    missing = DatasetSpec(name="gone", format="text", digest="sha256:" + "0" * 64)
    spec = dataclasses.replace(make_run(tmp_path, rows=text_rows(2)), datasets=(missing,))
    with pytest.raises(JobFailure, match="upload it first") as failed:
        prepared(spec)
    assert failed.value.code == "BAD_ARTIFACT"


@pytest.fixture
def blend(tmp_path):
    """A job that learns from a blend of two corpora."""
    corpora = tmp_path / "corpora"
    write_shard(corpora / "fr", numbered([30] * 10))
    write_shard(corpora / "en", numbered([40] * 10, first=50))
    spec = make_run(tmp_path, dataclasses.replace(BASE, steps=None, epochs=2.0))
    store = ArtifactStore(spec.artifacts_url, tmp_path / "cache")
    digest = store.write_bytes(b"corpora: {fr: {files: [fr]}, en: {files: [en]}}")
    return dataclasses.replace(spec, datasets=(DatasetSpec(name="both", format="blend", digest=digest),))


def test_a_blend_is_opened_like_windows(blend):
    ready = prepared(blend)
    found = open_windows(Path(ready.windows_folder), blend.config.seed)
    assert ready.total_steps == round(2 * (9 + 12) / blend.config.global_batch)  # windows of 32 in 300 and 400 tokens
    assert found.micro_batch(3, 2).inputs.shape == (2, 32)
    rows = make_run(Path(blend.data_dir))
    assert isinstance(open_windows(Path(prepared(rows).windows_folder), 1), Windows)


def test_a_blend_of_other_tokens_has_another_fingerprint(blend):
    before = prepared(blend).fingerprint
    assert prepared(blend).fingerprint == before
    write_shard(Path(blend.data_dir) / "corpora" / "fr", numbered([30] * 9))
    assert prepared(blend).fingerprint != before


def test_a_blend_that_a_job_cannot_learn_from_is_refused_before_any_rank_starts(blend):
    rows = make_run(Path(blend.data_dir)).datasets
    with pytest.raises(JobFailure, match="a blend goes alone, but the job has both, rows"):
        prepared(dataclasses.replace(blend, datasets=blend.datasets + rows))
    with pytest.raises(JobFailure, match=r"bpe_dropout=0.1 needs text"):
        prepared(dataclasses.replace(blend, config=dataclasses.replace(blend.config, bpe_dropout=0.1)))
    corpora = Path(blend.data_dir) / "corpora"
    Manifest(tokenizer="sha256:other", made_from={}, num_shards=1).save(corpora / "fr.json")
    with pytest.raises(JobFailure, match="fr was made with tokenizer sha256:other, the job has"):
        prepared(blend)
    (corpora / "fr.json").unlink()
    (corpora / "fr.bin").write_bytes(b"")
    with pytest.raises(JobFailure, match=r"fr.idx describes 1200 bytes") as failed:
        prepared(blend)
    assert failed.value.code == "CORRUPT_SHARD"
