"""A rank's program: `deepspeed` starts one per process with `--module services.trainer.train JOB_FOLDER`."""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, cast

import deepspeed
import numpy as np
import torch
import torch.distributed as dist

from bloom.config import BloomConfig
from bloom.model import BloomModel
from bloom.weights import load_config, load_model
from services.trainer import checkpoint
from services.trainer.config import Layout, Precision, RunSpec
from services.trainer.export import export
from services.trainer.failure import JobFailure, recorded
from services.trainer.folder import JobFolder
from services.trainer.lora import add_adapters
from services.trainer.loss import LanguageModelLoss
from services.trainer.optimizer import build_optimizer
from services.trainer.prepare import Prepared
from services.trainer.processes import die_with_parent, end_with_lease
from services.trainer.progress import Progress, ProgressWriter
from services.trainer.schedule import Schedule
from services.trainer.windows import open_windows

ROW_MULTIPLE = 128  # embedding rows of a new model, as Megatron pads them
SPEED_WINDOW = 20  # steps over which tokens/s is measured


def model_config(spec: RunSpec, folder: JobFolder, vocab_size: int) -> BloomConfig:
    """The model's shape, as it is to be exported. vocab_size: of the tokenizer. Raises JobFailure."""
    try:
        if spec.base_files:
            config = load_config(folder.base)
        elif spec.model_config.lstrip().startswith("{"):
            fields = json.loads(spec.model_config)
            if not fields.get("vocab_size"):
                fields["vocab_size"] = -(-vocab_size // ROW_MULTIPLE) * ROW_MULTIPLE
            config = BloomConfig.from_hf(fields)
        else:
            config = BloomConfig.preset(spec.model_config)
    except ValueError as error:
        raise JobFailure("BAD_MODEL", str(error), "config") from error
    if config.vocab_size < vocab_size:
        remedy = "choose another tokenizer, or set vocab_size to 0"
        raise JobFailure("BAD_MODEL", f"vocab_size={config.vocab_size} is below the tokenizer's {vocab_size}; {remedy}")
    return config


def build_model(spec: RunSpec, config: BloomConfig, folder: JobFolder) -> BloomModel:
    """The model as training starts, in fp32."""
    if spec.base_files:
        model = load_model(folder.base, dtype=torch.float32)
    else:
        model = BloomModel(config)
        model.initialize(spec.config.seed)
    dropout = spec.config.dropout
    model.config = dataclasses.replace(config, hidden_dropout=dropout, attention_dropout=dropout)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    if spec.config.lora:
        add_adapters(model, spec.config.lora, spec.config.seed)
    return model.train()


class Trainer:
    """Steps of one rank. What a step does follows from its number, the weights and the optimizer's state alone."""

    def __init__(self, engine: Any, spec: RunSpec, prepared: Prepared) -> None:
        config = spec.config
        self._engine = engine
        self._config = config
        self._windows = open_windows(Path(prepared.windows_folder), config.seed)
        self._total_steps = prepared.total_steps
        # Relative: each parameter group scales it by its own peak.
        self._schedule = Schedule(
            peak=1.0,
            minimum=config.min_learning_rate / config.learning_rate,
            warmup=config.warmup(self._total_steps),
            total=self._total_steps,
        )
        self._num_seen = config.global_batch * config.sequence_length  # tokens per step
        self._ends = [time.monotonic()]  # of recent steps

    def step(self, step: int) -> Progress:
        """Do step `step` (0 for the first); collective."""
        config, engine = self._config, self._engine
        factor = self._schedule.at(step + 1)
        for group in engine.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        first = step * config.global_batch
        num_targets = self._windows.num_targets(first, config.global_batch)
        # DeepSpeed averages over ranks and micro-batches: this makes the average a mean over the step's targets.
        scale = config.layout.dp * config.gradient_accumulation / max(1, num_targets)
        loss = torch.zeros((), device=engine.device)
        for index in range(config.gradient_accumulation):
            loss += self._micro_batch(step, index, first, scale)
        dist.all_reduce(loss)
        loss /= config.layout.dp * config.gradient_accumulation
        return self._progress(step + 1, float(loss), config.learning_rate * factor)

    def _micro_batch(self, step: int, index: int, first: int, scale: float) -> torch.Tensor:
        config, engine = self._config, self._engine
        position = index * config.layout.dp + dist.get_rank()
        batch = self._windows.micro_batch(first + position * config.micro_batch, config.micro_batch)
        torch.manual_seed(_dropout_seed(config.seed, step, position))
        arrays = (batch.inputs, batch.targets, batch.segments)
        tensors = [None if array is None else torch.from_numpy(array).to(engine.device) for array in arrays]
        loss: torch.Tensor = engine(*tensors, scale)
        engine.backward(loss)
        engine.step()
        return loss.detach()

    def _progress(self, done: int, loss: float, learning_rate: float) -> Progress:
        self._ends = [*self._ends[-SPEED_WINDOW:], time.monotonic()]
        seconds_per_step = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        grad_norm = float(self._engine.get_global_grad_norm())
        if not np.isfinite(loss) or not np.isfinite(grad_norm):
            remedy = "lower learning_rate, or use more warmup_steps"
            raise JobFailure(
                "DIVERGED", f"step {done}: loss {loss}, gradient norm {grad_norm}; {remedy}", "learning_rate"
            )
        return Progress(
            step=done,
            total_steps=self._total_steps,
            loss=loss,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            tokens_per_second=self._num_seen / seconds_per_step,
            tokens_seen=done * self._num_seen,
            seconds_left=(self._total_steps - done) * seconds_per_step,
            time=time.time(),
        )


def _dropout_seed(seed: int, step: int, position: int) -> int:
    return int(np.random.SeedSequence([seed, step, position]).generate_state(1, np.uint64)[0] >> 1)


def settle_precision(asked: Precision, file: Path) -> Precision:
    """What the run computes in, on all ranks and in all its attempts, which share `file`. Collective.

    fp32 instead of bf16 where rank 0's processor has no products of bf16: one would take 200 times as long as in fp32.
    """
    settled = [asked]
    if dist.get_rank() == 0:
        if not file.exists() or not file.read_text():  # killed while it was written
            has_bf16 = torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
            file.write_text(asked if has_bf16 else "fp32")
        settled = [cast(Precision, file.read_text())]
    dist.broadcast_object_list(settled, src=0)
    return settled[0]


def run(spec: RunSpec, folder: JobFolder, progress: ProgressWriter | None) -> None:
    """Train, or go on from the last checkpoint, and export; progress is rank 0's."""
    precision = settle_precision(spec.config.precision, folder.precision)
    if progress and precision != spec.config.precision:
        progress.message(f"computing in {precision}: this processor has no products of {spec.config.precision}")
    spec = dataclasses.replace(spec, config=dataclasses.replace(spec.config, precision=precision))
    config = spec.config
    prepared = Prepared.load(folder.tokens)
    exported = model_config(spec, folder, prepared.vocab_size)
    model = build_model(spec, exported, folder)
    engine, *_ = deepspeed.initialize(
        model=LanguageModelLoss(model), optimizer=build_optimizer(model, config), config=config.deepspeed()
    )
    first = checkpoint.restore(engine, folder.checkpoints, prepared.fingerprint)
    if progress:
        _announce(progress, spec, prepared, model, first)
    trainer = Trainer(engine, spec, prepared)
    for step in range(first, prepared.total_steps):
        report = trainer.step(step)
        if progress:
            progress.step(report)
        if report.step % config.checkpoint_every_steps == 0 or report.step == prepared.total_steps:
            if progress:
                progress.flush()  # no step before the checkpoint is done again: its report must outlive a kill
            checkpoint.save(engine, folder.checkpoints, report.step, prepared.fingerprint)
    if progress:
        export(model, exported, spec, folder)
        progress.flush()


def _announce(progress: ProgressWriter, spec: RunSpec, prepared: Prepared, model: BloomModel, first: int) -> None:
    if spec.attempt > 1:
        start = f"resumed from step {first}" if first else "started from the beginning: no checkpoint yet"
        progress.message(f"attempt {spec.attempt} {start}")
        return
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    progress.message(f"training {trained:,} parameters for {prepared.total_steps} steps")
    if prepared.num_truncated:
        length = spec.config.sequence_length
        progress.message(f"{prepared.num_truncated} examples are longer than sequence_length={length} and were cut")


def start_process_group(layout: Layout) -> None:
    """Join the other ranks: NCCL with CUDA, gloo without. Raises JobFailure."""
    if torch.cuda.is_available():
        if torch.cuda.device_count() < layout.dp:
            found = f"layout asks for {layout.dp} processes and this machine has {torch.cuda.device_count()} GPUs"
            raise JobFailure("BAD_LAYOUT", f"{found}; use '1x1x{torch.cuda.device_count()}'", "layout")
    else:
        # Else DeepSpeed compiles a C++ all-reduce for inference, for 80 s, that training never calls.
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo")


def main(job_folder: str) -> None:
    die_with_parent(os.getpgrp())  # the launcher leads the group
    folder = JobFolder(Path(job_folder))
    spec = RunSpec.load(folder.run)
    end_with_lease(folder.lease)
    with recorded(folder.failure(spec.fencing_token)):
        start_process_group(spec.config.layout)
        run(spec, folder, ProgressWriter(folder.progress) if dist.get_rank() == 0 else None)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
