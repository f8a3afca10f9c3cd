"""This project's trainer: the steps of services.trainer.train, as a rank makes them, without checkpoints."""

import json
import os
import sys
import tempfile
import uuid
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.train.task import ALONE, BETAS, CLIP, LEARNING_RATE, SEED, WEIGHT_DECAY, Clock, Task
from services.trainer.build import build_model, model_config
from services.trainer.config import RunSpec, TrainConfig
from services.trainer.dataset import WindowsMeta, write_meta
from services.trainer.folder import JobFolder
from services.trainer.packing import Window, WindowWriter
from services.trainer.prepare import Prepared
from services.trainer.ranks import Ranks
from services.trainer.skips import Skips
from services.trainer.train import Trainer, start_process_group


def train_config(task: Task) -> TrainConfig:
    return TrainConfig(
        steps=1 + task.steps,
        micro_batch=task.micro_batch,
        sequence_length=task.sequence_length,
        precision="bf16" if task.precision == "bf16" else "fp32",
        learning_rate=LEARNING_RATE,
        beta1=BETAS[0],
        beta2=BETAS[1],
        weight_decay=WEIGHT_DECAY,
        clip_grad_norm=CLIP,
        seed=SEED,
    )


def write_windows(task: Task, folder: Path) -> Prepared:
    """The task's sequences as prepare.py would leave them."""
    writer = WindowWriter(folder, task.sequence_length, packed=False)
    for row in task.sequences().tolist():
        writer.write(Window(row[:-1], row[1:], [0] * task.sequence_length))
    writer.close()
    fingerprint = uuid.uuid4().hex
    write_meta(
        folder,
        WindowsMeta(
            sequence_length=task.sequence_length,
            variants=(writer.num_windows,),
            packed=False,
            num_targets=writer.num_targets,
            num_truncated=0,
            fingerprint=fingerprint,
        ),
    )
    return Prepared(
        windows_folder=str(folder),
        fingerprint=fingerprint,
        total_steps=1 + task.steps,
        vocab_size=task.config.vocab_size,
        num_truncated=0,
    )


def main() -> None:
    task = Task.from_json(sys.argv[1])
    torch.set_num_threads(task.threads)
    os.environ.update(ALONE)
    spec = RunSpec(
        job_id="benchmark",
        attempt=1,
        fencing_token=1,
        config=train_config(task),
        datasets=(),
        tokenizer_digest="",
        model_config=json.dumps(task.config.to_hf()),
        data_dir="",
        artifacts_url="",
    )
    with tempfile.TemporaryDirectory(prefix="an-") as name:
        folder = JobFolder(Path(name))
        prepared = write_windows(task, folder.path)
        start_process_group(spec.config.layout)
        ranks = Ranks.of(spec.config)
        model = build_model(spec, model_config(spec, folder, task.config.vocab_size), folder, ranks)
        trainer = Trainer(spec, prepared, model, ranks, Skips())
        clock = Clock()
        for step in range(prepared.total_steps):
            clock.step_done(trainer.step(step).loss)
    dist.destroy_process_group()
    Clock.end(f"torch {torch.__version__}, numpy {np.__version__}")


if __name__ == "__main__":
    main()
