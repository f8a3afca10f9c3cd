"""A rank's program: `deepspeed` starts one per process with `--module services.trainer.train JOB_FOLDER`."""

import dataclasses
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.utils import clip_grad_norm_

from bloom.flops import flops_per_token
from bloom.layout import Layout, stages
from bloom.model import BloomModel
from services.trainer import loss_scale
from services.trainer.build import build_model, model_config
from services.trainer.checkpoint import Checkpoints
from services.trainer.config import Precision, RunSpec
from services.trainer.dropout import attention_seed, micro_batch_seed, seed_hidden
from services.trainer.export import export
from services.trainer.failure import JobFailure, recorded
from services.trainer.folder import JobFolder
from services.trainer.lease_file import end_with_lease
from services.trainer.loss import LanguageModelLoss
from services.trainer.optimizer import build_optimizer
from services.trainer.pipeline import Stages
from services.trainer.precision import check_fp16
from services.trainer.prepare import Prepared
from services.trainer.processes import die_with_parent
from services.trainer.progress import Progress, ProgressWriter
from services.trainer.provenance import note_attempt
from services.trainer.ranks import Ranks
from services.trainer.retention import finished
from services.trainer.room import patience_s, when_there_is_room
from services.trainer.saved_state import STATE_FOLDER
from services.trainer.skips import Skips
from services.trainer.steering import Steering, Verdict
from services.trainer.validation import Validation
from services.trainer.windows import open_windows
from services.trainer.zero import partition

LAST_WAIT_S = 5.0  # between tries at writing the last checkpoint
SPEED_WINDOW = 20  # steps over which tokens/s is measured


class Trainer:
    """Steps of one rank. What a step does follows from its number, the weights and the optimizer's state alone."""

    def __init__(self, spec: RunSpec, prepared: Prepared, model: BloomModel, ranks: Ranks, skips: Skips) -> None:
        config = spec.config
        self._config = config
        self._ranks = ranks
        self.windows = open_windows(
            Path(prepared.windows_folder), config.seed, normalize_targets=config.normalize_targets
        )
        self._skips = skips
        self._total_steps = prepared.total_steps
        self._schedule = config.schedule(self._total_steps)  # each parameter group scales it by its own peak
        self._grad_norm: float | None = None  # where the engine does not tell
        self._ends: list[tuple[float, int]] = []  # of recent steps: when, and how many tokens had been seen
        self._model_flops, self._hardware_flops = (  # of a token
            flops_per_token(
                model.config, seq_length=config.sequence_length, recompute=again, frozen=config.lora is not None
            )
            for again in (False, config.recompute)
        )
        shard = ranks.shard(model.config)
        self._is_pipelined = config.layout.pp > 1
        optimizer = build_optimizer(model, config, ranks.grid.get_data_parallel_group())
        module = (
            Stages(model, shard, config, ranks)
            if self._is_pipelined
            else LanguageModelLoss(model, shard, ranks.tensor_parallel)
        )
        if config.zero_stage == 3 and isinstance(module, LanguageModelLoss):
            partition(module, config, ranks)
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=config.deepspeed(),
            mpu=None if self._is_pipelined else ranks.grid,  # a PipelineModule brings its own
        )
        # Without ZeRO there is one replica: the engine would copy every gradient to add up none.
        self.engine.enable_backward_allreduce = not config.is_undivided

    def step(self, step: int) -> Progress:
        """Do step `step` (0 for the first); collective."""
        config = self._config
        self._ends = self._ends or [(time.monotonic(), config.samples_before(step) * config.sequence_length)]
        factor = self._schedule.at(config.samples_before(step + 1))
        for group in self.engine.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        num_micro_batches = config.num_micro_batches(step)
        self.engine.set_train_batch_size(num_micro_batches * config.micro_batch * config.layout.dp)
        with loss_scale.divergence(step + 1):
            loss = self._pipelined_loss(step) if self._is_pipelined else self._loss(step)
        return self._progress(step + 1, loss, config.learning_rate * factor)

    def validated(self, report: Progress, validation: Validation | None) -> Progress:
        """The report of a step, with the validation that is due after it; collective. It does not count as slowness."""
        if validation is None or not validation.is_due(report.step, report.total_steps):
            return report
        began = time.monotonic()
        losses = validation.losses(self.engine)
        self._ends = [(end + time.monotonic() - began, seen) for end, seen in self._ends]
        return dataclasses.replace(report, validation=losses, time=time.time())

    def _loss(self, step: int) -> float:
        """Of a step in which every rank has all layers."""
        config, engine = self._config, self.engine
        loss = torch.zeros((), device=engine.device)
        num_micro_batches = config.num_micro_batches(step)
        for index, micro_batch in enumerate(self._micro_batches(step)):
            # Said each time: DeepSpeed counts micro-batches from the start, as if all steps had as many.
            engine.set_gradient_accumulation_boundary(index + 1 == num_micro_batches)
            seed_hidden(micro_batch.seed, self._ranks)
            inputs, targets, segments, target_weights = (
                None if tensor is None else tensor.to(engine.device) for tensor in micro_batch.tensors
            )
            seed = attention_seed(micro_batch.seed, self._ranks)
            loss_of_batch = engine(inputs, targets, segments, micro_batch.scale, seed, target_weights)
            engine.backward(loss_of_batch)
            if engine.is_gradient_accumulation_boundary() and config.is_undivided:
                self._clip()
            engine.step()
            loss += loss_of_batch.detach()
        dist.all_reduce(loss, group=self._ranks.grid.get_data_parallel_group())
        return float(loss) / (config.layout.dp * num_micro_batches)

    def _clip(self) -> None:
        """What ZeRO does in its step: the norm is that of the whole model's gradient."""
        limit = self._config.clip_grad_norm or float("inf")
        self._grad_norm = float(clip_grad_norm_(self.engine.module.parameters(), limit, mpu=self._ranks.grid))

    def _pipelined_loss(self, step: int) -> float:
        """Of a step through all stages; those between the first and the last read no batches."""
        batches = (
            (
                (inputs, torch.tensor([micro_batch.seed]), *([] if segments is None else [segments])),
                (targets, torch.tensor([micro_batch.scale]), *([] if weights is None else [weights])),
            )
            for micro_batch in self._micro_batches(step)
            for inputs, targets, segments, weights in [micro_batch.tensors]
        )
        return float(self.engine.train_batch(batches))

    def _micro_batches(self, step: int) -> Iterator["StepPart"]:
        """This replica's, in order."""
        config = self._config
        consumed, num_micro_batches = config.samples_before(step), config.num_micro_batches(step)
        first = self._skips.at(consumed)  # skips begin and end with steps
        num_targets = self.windows.num_targets(first, config.samples_before(step + 1) - consumed)
        # DeepSpeed averages over replicas and micro-batches: this makes the average a mean over the step's targets.
        scale = config.layout.dp * num_micro_batches / max(1, num_targets)
        for index in range(num_micro_batches):
            position = index * config.layout.dp + self._ranks.dp_rank
            batch = self.windows.micro_batch(first + position * config.micro_batch, config.micro_batch)
            arrays = (batch.inputs, batch.targets, batch.segments, batch.target_weights)
            tensors = tuple(None if array is None else torch.from_numpy(array) for array in arrays)
            yield StepPart(tensors, scale, micro_batch_seed(config.seed, step, position))

    def _progress(self, done: int, loss: float, learning_rate: float) -> Progress:
        seen, in_all = (
            self._config.samples_before(step) * self._config.sequence_length for step in (done, self._total_steps)
        )
        self._ends = [*self._ends[-SPEED_WINDOW:], (time.monotonic(), seen)]
        (began, seen_then), (now, _) = self._ends[0], self._ends[-1]
        tokens_per_second = (seen - seen_then) / (now - began)
        grad_norm = float(self.engine.get_global_grad_norm() if self._grad_norm is None else self._grad_norm)
        return Progress(
            step=done,
            total_steps=self._total_steps,
            loss=loss,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            tokens_per_second=tokens_per_second,
            tokens_seen=seen,
            seconds_left=(in_all - seen) / tokens_per_second,
            time=time.time(),
            samples_seen=self._config.samples_before(done),
            model_flops_per_second=tokens_per_second * self._model_flops,
            hardware_flops_per_second=tokens_per_second * self._hardware_flops,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class StepPart:
    """A micro-batch of a step."""

    tensors: tuple[torch.Tensor | None, ...]  # inputs, targets, segments, weights of targets
    scale: float  # of its loss
    seed: int  # of its dropout


def settle_precision(asked: Precision, file: Path) -> Precision:
    """What the run computes in, on all ranks and in all its attempts, which share `file`. Collective.

    fp32 instead of bf16 where rank 0's processor has no products of bf16: one would take 200 times as long as in fp32.
    Raises JobFailure for fp16 where this machine has none of it.
    """
    if asked == "fp16":
        check_fp16()
        return asked
    settled: list[Precision] = [asked]
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
    ranks = Ranks.of(config)
    model = build_model(spec, exported, folder, ranks)
    trainer = Trainer(spec, prepared, model, ranks, Skips.load(folder.skips))
    checkpoints = Checkpoints(
        folder.checkpoints, trainer.engine, model, config.optimizer, ranks, prepared.fingerprint, config.retention
    )
    brought = folder.brought if spec.from_job else None if config.lora else folder.base / STATE_FOLDER
    first = checkpoints.restore(brought)
    validation = None
    if prepared.validation_folder:
        validation = Validation(Path(prepared.validation_folder), config, ranks, folder.validating)
    if progress:
        note_attempt(folder, spec, first)
        is_brought = first > 0 and not finished(folder.checkpoints)
        _announce(progress, spec, prepared, _num_trained(model, spec), first, is_brought=is_brought)
    steering = Steering(spec, folder, trainer.windows, progress, first)
    for step in range(first, prepared.total_steps):
        report = trainer.step(step)
        verdict = steering.verdict(report, trainer.engine.device, is_skipped=loss_scale.skipped(trainer.engine))
        if verdict is Verdict.GO_BACK:
            checkpoints.finish()
            if progress:
                progress.flush()
                steering.go_back(report.step)
            return
        report = trainer.validated(report, validation)
        if progress and loss_scale.skipped(trainer.engine):
            progress.message(f"step {report.step} changed nothing: {loss_scale.overflow(trainer.engine)}")
        elif progress:
            progress.step(report)
        if report.step == prepared.total_steps:
            break
        if report.step % config.checkpoint_every_steps == 0 or verdict is Verdict.STOP:
            if progress:
                progress.flush()  # no step before the checkpoint is done again: its report must outlive a kill
            if (failed := checkpoints.save(report.step)) and progress:
                progress.message(f"a checkpoint could not be written ({failed}); training goes on and will try again")
        if verdict is Verdict.STOP:
            failed = checkpoints.finish()
            if progress:
                steering.stop(report.step, failed)
            return
    if progress:
        progress.flush()
    if first < prepared.total_steps:
        save_last(checkpoints, prepared.total_steps, progress)
    if progress:
        when_there_is_room(lambda: export(exported, spec, folder), progress.flush, progress.message)
        progress.flush()


def save_last(checkpoints: Checkpoints, step: int, progress: ProgressWriter | None) -> None:
    """The checkpoint that is exported; waits for room on the disk. Raises JobFailure where none comes."""
    for attempt in range(max(1, round(patience_s() / LAST_WAIT_S))):  # as many on all ranks
        checkpoints.save(step)
        failed = checkpoints.finish()
        if not failed:
            return
        if progress and not attempt:
            progress.message(f"the last checkpoint could not be written ({failed}); waiting for room")
        elif progress:
            progress.flush()  # a sign of life to the worker, who may not have seen the last step yet
        time.sleep(LAST_WAIT_S)
    raise JobFailure("DISK_FULL", f"the last checkpoint could not be written: {failed}; free some and submit again")


def _num_trained(model: BloomModel, spec: RunSpec) -> int:
    """Parameters of the whole model that training changes."""
    if spec.config.lora:
        return stages(model.config, 1)[0].adapter_parameters(model.config, 1, spec.config.lora.rank)
    return model.config.parameters


def _announce(
    progress: ProgressWriter, spec: RunSpec, prepared: Prepared, num_trained: int, first: int, *, is_brought: bool
) -> None:
    """is_brought: step `first` is that of a state that came with the base, or from another job."""
    if not is_brought and (spec.attempt > 1 or first):
        start = f"resumed from step {first}" if first else "started from the beginning: no checkpoint yet"
        progress.message(f"attempt {spec.attempt} {start}, layout {spec.config.layout}")
        return
    progress.message(f"training {num_trained:,} parameters for {prepared.total_steps} steps")
    if is_brought:
        whose = f"a checkpoint of {spec.from_job}" if spec.from_job else "the base's own state"
        progress.message(f"going on from {whose}, at step {first}")
    if prepared.num_truncated:
        length = spec.config.sequence_length
        progress.message(f"{prepared.num_truncated} examples are longer than sequence_length={length} and were cut")


def start_process_group(layout: Layout) -> None:
    """Join the other ranks: NCCL with CUDA, gloo without. Raises JobFailure."""
    if torch.cuda.is_available():
        num_here = int(os.environ["LOCAL_SIZE"])  # of the ranks, as DeepSpeed's launcher says
        if torch.cuda.device_count() < num_here:
            found = f"layout '{layout}' asks for {num_here} GPUs of {socket.gethostname()}"
            remedy = f"it has {torch.cuda.device_count()}: use fewer, or say so in the hostfile"
            raise JobFailure("BAD_LAYOUT", f"{found}; {remedy}", "layout")
    else:
        # Else DeepSpeed compiles a C++ all-reduce for inference, for 80 s, that training never calls.
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo")


def main(job_folder: str) -> None:
    die_with_parent(os.getpgrp())  # the launcher leads the group
    folder = JobFolder(Path(job_folder))
    spec = RunSpec.load(folder.run)
    end_with_lease(folder.lease, spec.fencing_token)
    with recorded(folder.failure(spec.fencing_token)):
        start_process_group(spec.config.layout)
        run(spec, folder, ProgressWriter(folder.progress) if dist.get_rank() == 0 else None)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
