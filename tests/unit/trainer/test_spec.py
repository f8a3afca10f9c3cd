"""What an attempt's processes are told comes to them as the worker wrote it."""

import pytest

from bloom.layout import Layout
from services.trainer.clean_corpus import CleanSpec
from services.trainer.config import DatasetSpec, LoraConfig, RunSpec, TrainConfig
from services.trainer.dataset_report.spec import ReportSpec
from services.trainer.evaluation import EvaluationSpec
from services.trainer.import_model import ImportSpec
from services.trainer.train_tokenizer import TokenizerSpec

WHERE = {"job_id": "job-1", "fencing_token": 3, "data_dir": "/data", "artifacts_url": "s3://bucket"}
ROWS = DatasetSpec(name="rows@1", format="text", digest="sha256:1")
CONFIG = TrainConfig(
    epochs=1.5, seed=2**64 - 1, layout=Layout(tp=1, pp=2, dp=2), lora=LoraConfig(rank=4, base_weights="nf4")
)
SPECS = [
    RunSpec(
        attempt=2,
        config=CONFIG,
        datasets=(ROWS,),
        validation=(ROWS, ROWS),
        tokenizer_digest="sha256:2",
        base_files=(("config.json", "sha256:3"),),
        **WHERE,
    ),
    RunSpec(attempt=1, config=TrainConfig(steps=5), datasets=(), tokenizer_digest="sha256:2", **WHERE),
    EvaluationSpec(
        suite="wiki@1",
        datasets=(ROWS,),
        sequence_length=64,
        tokenizer_digest="sha256:2",
        files=(("config.json", "sha256:3"),),
        **WHERE,
    ),
    ReportSpec(dataset=ROWS, held_out=(ROWS,), tokenizer_digest="sha256:2", sequence_length=64, **WHERE),
    TokenizerSpec(digests=("sha256:1",), vocab_size=512, min_frequency=2, **WHERE),
    CleanSpec(
        digests=("sha256:1",),
        default_language="sw",
        near_duplicates=True,
        foreign_lines=False,
        personal_information=("EMAIL", "IP_ADDRESS"),
        **WHERE,
    ),
    ImportSpec(model="bigscience/bloom-560m", **WHERE),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
def test_a_spec_is_loaded_as_it_was_saved(tmp_path, spec):
    spec.save(tmp_path / "run.json")

    assert type(spec).load(tmp_path / "run.json") == spec


def test_the_file_can_be_read_by_people(tmp_path):
    SPECS[-1].save(tmp_path / "run.json")

    assert '\n "model": "bigscience/bloom-560m"' in (tmp_path / "run.json").read_text()
