"""training.json: a recipe that leaves nothing to defaults, and the attempts whose steps are in the result."""

import dataclasses
import json
from pathlib import Path

import pytest
from anthesis.v1 import job_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.prepare import Prepared
from services.trainer.provenance import contributing, note_attempt, recipe, training_json
from services.trainer.registry_client import train_config
from tests.support.training import BASE, job_folder, make_run

OPTIONS = [
    {"steps": 100},
    {"epochs": 2.5, "learning_rate": 3e-4, "warmup_steps": 7, "layout": "2x1x4"},
    {"steps": 40, "batch_ramp": "16,8,80", "gradient_accumulation": 4, "warmup_samples": 50, "decay_samples": 300},
    {"steps": 10, "warmup_steps": 0, "min_learning_rate": 0, "dropout": 0.1, "seed": 2**63, "precision": "fp32"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_job_with_every_default_said_is_the_same_run(options):
    config = train_config(job_pb2.TrainOptions(**options), None, {})
    said = recipe(config, 100)
    again = train_config(job_pb2.TrainOptions(**json.loads(json.dumps(said))), None, {"learning_rate": 0.5})
    assert recipe(again, 100) == said
    assert again.schedule(100) == config.schedule(100)
    scheduled = {"warmup_samples": None, "decay_samples": None}
    assert dataclasses.replace(again, **scheduled) == dataclasses.replace(config, **scheduled)


def test_defaults_are_kept_as_the_contract_carries_numbers():
    assert train_config(job_pb2.TrainOptions(steps=1), None, {}) == train_config(
        job_pb2.TrainOptions(steps=1, weight_decay=0.1, learning_rate=1e-3, beta1=0.9), None, {}
    )


@given(st.lists(st.integers(0, 12), min_size=1))
def test_attempts_count_whose_steps_were_not_done_again(first_steps):
    attempts = [{"first_step": step, "number": number} for number, step in enumerate(first_steps)]
    kept = contributing(attempts, total_steps=10)
    made_by = {}  # what a run would do: each attempt trains until the next one begins
    for attempt in attempts:
        made_by |= dict.fromkeys(range(attempt["first_step"], 10), attempt["number"])
    assert {attempt["number"] for attempt in kept} == set(made_by.values())
    assert kept == sorted(kept, key=lambda attempt: attempt["number"])


def test_the_record_names_data_recipe_code_libraries_and_machine(tmp_path: Path):
    spec = make_run(tmp_path, dataclasses.replace(BASE, steps=10))
    folder = job_folder(spec)
    prepared = Prepared(windows_folder="", fingerprint="f", total_steps=10, vocab_size=1, num_truncated=0)
    folder.tokens.write_text(json.dumps(dataclasses.asdict(prepared)))
    note_attempt(folder, spec, 0)
    with folder.attempts.open("a") as file:
        file.write('{"first_step": 2, "lay')  # killed while it wrote
    note_attempt(folder, dataclasses.replace(spec, config=dataclasses.replace(spec.config, precision="bf16")), 4)
    record = json.loads(training_json(folder))
    assert record["datasets"] == [{"name": "rows", "format": "text", "digest": spec.datasets[0].digest}]
    assert (record["tokenizer_digest"], record["recipe"]["seed"]) == (spec.tokenizer_digest, 42)
    assert [(a["first_step"], a["precision"], a["layout"]) for a in record["attempts"]] == [
        (0, "fp32", "1x1x1"),
        (4, "bf16", "1x1x1"),
    ]
    attempt = record["attempts"][0]
    assert {"python", "torch", "deepspeed", "numpy", "tokenizers"} <= attempt["libraries"].keys()
    assert attempt["code"]["release"]
    assert attempt["code"]["sources"].startswith("sha256:")
    assert attempt["machine"]["threads"] >= 1
    assert attempt["machine"]["isa"]
