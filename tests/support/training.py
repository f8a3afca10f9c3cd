"""Small training runs for tests: real data in a real artifact store, real stages, no registry."""

import dataclasses
import json
import random
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from services.common.artifacts import ArtifactStore
from services.common.settings import ROOT
from services.trainer.config import DatasetSpec, RunSpec, TrainConfig
from services.trainer.folder import JobFolder
from services.trainer.launch import deepspeed_command, environment, num_cores, prepare_command
from services.trainer.lease_file import write_lease
from services.trainer.progress import Progress, ProgressReader
from tests.support.tokenizers import TEXTS, small_tokenizer_json

MODEL = {"model_type": "bloom", "vocab_size": 0, "hidden_size": 48, "n_layer": 2, "n_head": 6}
BASE = TrainConfig(steps=6, sequence_length=32, micro_batch=4, learning_rate=3e-3, precision="fp32", warmup_steps=2)


def text_rows(count: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """TEXT rows of words from several scripts."""
    rng = random.Random(seed)
    words = [word for text in TEXTS for word in text.split()]
    return [{"text": " ".join(rng.choices(words, k=rng.randint(5, 30)))} for _ in range(count)]


def multitask_rows(count: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """MULTITASK rows whose target repeats part of the input."""
    rng = random.Random(seed)
    words = [word for text in TEXTS for word in text.split()]
    pairs = [rng.choices(words, k=2) for _ in range(count)]
    return [{"inputs": f"{first} {second} =>", "targets": f" {second}"} for first, second in pairs]


def jsonl(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def make_run(
    data_dir: Path, config: TrainConfig = BASE, *, rows: list[dict[str, Any]] | None = None, **changes: Any
) -> RunSpec:
    """A run in `data_dir`, its artifacts stored; `changes` replace fields of the RunSpec."""
    store = ArtifactStore(str(data_dir / "artifacts"), data_dir / "cache")
    rows = text_rows() if rows is None else rows
    form = "text" if not rows or "text" in rows[0] else "multitask"
    spec = RunSpec(
        job_id="job",
        attempt=1,
        fencing_token=1,
        config=config,
        datasets=(DatasetSpec(name="rows", format=form, digest=store.write_bytes(jsonl(rows))),),
        tokenizer_digest=store.write_bytes(small_tokenizer_json().encode()),
        model_config=json.dumps(MODEL),
        data_dir=str(data_dir),
        artifacts_url=str(data_dir / "artifacts"),
    )
    return dataclasses.replace(spec, **changes)


def job_folder(spec: RunSpec) -> JobFolder:
    """The run's folder, with `run.json` and a lease that outlasts the test."""
    folder = JobFolder(Path(spec.data_dir) / "jobs" / spec.job_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    spec.save(folder.run)
    spec.save(folder.asked)
    write_lease(folder.lease, spec.fencing_token, 3600)
    return folder


def mutated(command: list[str], mistake: str) -> list[str]:
    """deepspeed_command's, with ranks that make a mistake."""
    return [*command[:-2], "tests.support.mutated_training", mistake, command[-1]]


def run_stages(spec: RunSpec, *, threads: int = 1, mistake: str = "") -> JobFolder:
    """Prepare and train to the end, in real processes. Raises RuntimeError with the log's end.

    mistake: one of tests.support.mutated_training that all ranks make.
    """
    folder = job_folder(spec)
    env = environment(spec.job_id, spec.fencing_token, spec.config.layout) | {"OMP_NUM_THREADS": str(threads)}
    train = deepspeed_command(folder.path, spec.config.layout)
    if mistake:
        train = mutated(train, mistake)
    for command in (prepare_command(folder.path), train):
        result = subprocess.run(
            command,
            env=env,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        if result.returncode:
            raise RuntimeError(f"exit {result.returncode}: {result.stdout[-4000:]}")
    return folder


def losses_alone(folder: JobFolder) -> dict[int, float]:
    """The losses, by step, of the run in `folder` when this machine does it alone, from the beginning.

    With as many threads as a rank has that is alone on its host: sums depend on them.
    """
    spec = dataclasses.replace(RunSpec.load(folder.run), attempt=1)
    alone = dataclasses.replace(spec, job_id=f"{spec.job_id}-alone")
    return dict(enumerate(losses(run_stages(alone, threads=num_cores())), 1))


def progress(folder: JobFolder) -> list[Progress]:
    return ProgressReader(folder.progress).read()[0]


def losses(folder: JobFolder) -> list[float]:
    return [step.loss for step in progress(folder)]
