"""Validation while real ranks train: what transformers says of the weights, and nothing that training notices."""

import dataclasses
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import BloomForCausalLM

from bloom.layout import Layout
from services.common.artifacts import ArtifactStore
from services.trainer.config import DatasetSpec, RunSpec
from services.trainer.folder import JobFolder
from tests.support.bits_per_byte import bits_per_byte
from tests.support.bloom_models import make_hf_folder
from tests.support.tokenizers import TEXTS, small_tokenizer_json
from tests.support.training import BASE, jsonl, make_run, progress, run_stages, text_rows

LANGUAGES = ("en", "fr", "es", "zh")
ROWS = [{"text": text, "language": language} for text, language in zip(TEXTS, LANGUAGES, strict=False)]
ROWS += [{"text": row["text"], "language": "fr"} for row in text_rows(12, seed=7)]
CONFIG = dataclasses.replace(BASE, steps=3, micro_batch=2, warmup_steps=1, dropout=0.2, validate_every_steps=2)


def held_out(data_dir: Path, layout: str) -> RunSpec:
    """A run that starts from a model with every parameter perturbed: one as it is drawn hardly sees its context."""
    base = make_hf_folder(data_dir / "base", n_layer=2, vocab=512)
    spec = make_run(data_dir, dataclasses.replace(CONFIG, layout=Layout.parse(layout)))
    store = ArtifactStore(spec.artifacts_url, data_dir / "cache")
    dataset = DatasetSpec(name="held-out", format="text", digest=store.write_bytes(jsonl(ROWS)))
    files = tuple((path.name, store.write_file(path)) for path in sorted(base.iterdir()))
    return dataclasses.replace(spec, validation=(dataset,), base_files=files)


def measured(folder: JobFolder) -> dict[str, tuple[float, int]]:
    return {loss.language: (loss.bits_per_byte, loss.num_bytes) for loss in progress(folder)[-1].validation}


def by_transformers(folder: JobFolder) -> dict[str, tuple[float, int]]:
    model = BloomForCausalLM.from_pretrained(folder.export)
    return bits_per_byte(model, Tokenizer.from_str(small_tokenizer_json()), ROWS, CONFIG.sequence_length)


def greatest_difference(folder: JobFolder) -> float:
    got, want = measured(folder), by_transformers(folder)
    assert {language: size for language, (_, size) in got.items()} == {name: size for name, (_, size) in want.items()}
    return max(abs(got[language][0] / want[language][0] - 1) for language in want)


@pytest.mark.parametrize(
    "layout",
    [
        "1x1x1",
        pytest.param("1x2x2", marks=pytest.mark.long),
        pytest.param("2x1x1", marks=pytest.mark.long),
        pytest.param("2x2x2", marks=pytest.mark.long),
    ],
)
def test_bits_per_byte_equal_transformers_and_training_has_the_losses_it_has_without(tmp_path, layout: str):
    spec = held_out(tmp_path, layout)
    folder = run_stages(spec)
    assert [bool(step.validation) for step in progress(folder)] == [False, True, True]
    assert greatest_difference(folder) < 1e-5
    without = run_stages(dataclasses.replace(spec, job_id="without", validation=()))
    assert [(step.loss, step.grad_norm) for step in progress(folder)] == [
        (step.loss, step.grad_norm) for step in progress(without)
    ]


@pytest.mark.long
@pytest.mark.parametrize("mistake", ["validation_with_dropout", "replicas_validate_the_same"])
def test_a_planted_mistake_is_noticed(tmp_path, mistake: str):
    assert greatest_difference(run_stages(held_out(tmp_path, "1x1x2"), mistake=mistake)) > 1e-3
