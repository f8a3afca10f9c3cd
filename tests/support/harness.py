"""What tests of the harness do again and again: specs and rows on disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.common.artifacts import ArtifactStore
from services.trainer.config import DatasetSpec
from services.trainer.harness.spec import HarnessSpec, HarnessTask

JINJA, CHOICES = "{{question}} ||| {{answer}}", "no ||| yes"
ROWS = [
    {"question": f"Is {number} even?", "answer": "no" if number % 2 else "yes", "language": language}
    for number, language in enumerate(["fr"] * 4 + ["sw"] * 3)
]


def task_of_rows(store: ArtifactStore, rows: Sequence[Any] = ROWS, **changes: Any) -> HarnessTask:
    digest = store.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode())
    dataset = DatasetSpec(name="quiz-rows@1", format="fields", digest=digest)
    values = {"name": "quiz", "language": "", "dataset": dataset, "jinja": JINJA, "answer_choices": CHOICES}
    return HarnessTask(**values | changes)


def known_task(name: str, language: str = "") -> HarnessTask:
    return HarnessTask(name=name, language=language, dataset=None, jinja="", answer_choices="")


def spec_of(data_dir: Path, *tasks: HarnessTask, **changes: Any) -> HarnessSpec:
    values = {
        "job_id": "job-1",
        "fencing_token": 1,
        "project": "",
        "suite": "quiz@1",
        "version": "seedling@1",
        "tasks": tasks,
        "metrics": ("acc", "acc_norm", "exact_match", "bits_per_byte"),
        "num_fewshot": 0,
        "limit": 0,
        "tokenizer_digest": "",
        "gateway_url": "http://127.0.0.1:1",
        "data_dir": str(data_dir),
        "artifacts_url": str(data_dir / "artifacts"),
    }
    return HarnessSpec(**values | changes)
