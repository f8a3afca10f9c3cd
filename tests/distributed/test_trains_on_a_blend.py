"""A job that learns from tokenized corpora, and goes on after it was stopped."""

import dataclasses
import shutil
from pathlib import Path

from bloom.layout import Layout
from services.common.artifacts import ArtifactStore
from services.trainer.config import DatasetSpec, RunSpec, TrainConfig
from services.trainer.corpus.run import Options, tokenize
from services.trainer.corpus.texts import Reading
from tests.support.corpora import texts, write_jsonl
from tests.support.tokenizers import write_small_tokenizer
from tests.support.training import BASE, losses, make_run, run_stages

BLEND = b"corpora: {a: {weight: 0.75, files: [a]}, b: {weight: 0.25, files: [b]}}"


def blend_run(data_dir: Path, config: TrainConfig) -> RunSpec:
    """A run on two corpora, tokenized here by the command's own code."""
    corpora = data_dir / "corpora"
    corpora.mkdir(parents=True)
    for number, name in enumerate("ab"):
        tokenize(
            Options(
                tokenizer=write_small_tokenizer(data_dir),
                inputs=(write_jsonl(data_dir / f"{name}.jsonl", texts(60, seed=number)),),
                output=corpora / name,
                workers=1,
                reading=Reading(),
            )
        )
    store = ArtifactStore(str(data_dir / "artifacts"), data_dir / "cache")
    dataset = DatasetSpec(name="blend", format="blend", digest=store.write_bytes(BLEND))
    return make_run(data_dir, config, datasets=(dataset,))


def test_a_job_on_two_ranks_learns_from_a_blend_and_a_stop_changes_no_loss(tmp_path):
    config = dataclasses.replace(BASE, micro_batch=2, layout=Layout(dp=2), checkpoint_every_steps=3)
    spec = blend_run(tmp_path, config)
    folder = run_stages(spec)
    expected = losses(folder)
    assert len(expected) == 6
    assert expected[-1] < expected[0]

    shutil.rmtree(folder.checkpoints / "step-00000006")  # as if it had stopped after step 5
    folder.progress.unlink()
    run_stages(dataclasses.replace(spec, attempt=2, fencing_token=2))
    assert losses(folder) == expected[3:]
