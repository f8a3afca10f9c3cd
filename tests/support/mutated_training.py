"""A rank's program with one planted change: `python -m tests.support.mutated_training MISTAKE JOB_FOLDER`."""

import dataclasses
import fcntl
import math
import os
import sys
from pathlib import Path

import torch.nn.functional as F
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.pipe.module import PipelineModule
from torch import Tensor

from bloom.alibi import slopes
from bloom.parallel import Shard
from bloom.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from services.trainer import config, train
from services.trainer.dataset import MicroBatch, Windows
from services.trainer.folder import JobFolder
from services.trainer.lora import LoraLinear
from services.trainer.validation import Validation

BAD_SAMPLES = {41, 141}


def slopes_of_another_rank() -> None:
    Shard.slopes = lambda self, config: slopes(config.n_head)[: config.n_head // self.tp_size]  # type: ignore[method-assign]


def tied_gradient_counted_twice() -> None:
    once = PipelineEngine._exec_reduce_tied_grads

    def twice(engine: PipelineEngine) -> None:
        once(engine)
        once(engine)

    # The engine finds what to do by a table of functions.
    for instruction, function in PipelineEngine._INSTRUCTION_MAP.items():
        if function is once:
            PipelineEngine._INSTRUCTION_MAP[instruction] = twice


def bad_samples() -> None:
    """Not the code's mistake but the data's: some samples give a loss that is no number."""
    micro_batch, part = Windows.micro_batch, train.StepPart
    factor = [1.0]

    def noting(self: Windows, start: int, count: int) -> MicroBatch:
        factor[0] = math.nan if set(range(start, start + count)) & BAD_SAMPLES else 1.0
        return micro_batch(self, start, count)

    Windows.micro_batch = noting  # type: ignore[method-assign]
    train.StepPart = lambda tensors, scale, seed: part(tensors, scale * factor[0], seed)  # type: ignore[assignment, misc]


def adapters_sides_not_summed() -> None:
    """Each rank's gradient of what all have is that of its own tokens."""
    LoraLinear._added = _added_alone  # type: ignore[method-assign]


def _added_alone(layer: LoraLinear, x: Tensor) -> Tensor:
    match layer.base:
        case ColumnParallelLinear(parallel=parallel):
            return F.linear(parallel.enter(F.linear(x, layer.lora_a)), layer.lora_b)
        case RowParallelLinear(parallel=parallel):
            return F.linear(parallel.leave(F.linear(x, layer.lora_a)), layer.lora_b)
    raise AssertionError("for tensor-parallel ranks alone")


def fp16_anywhere() -> None:
    """No mistake: fp16 on a processor without its products, slowly, from a loss scale that overflows at first."""
    train.check_fp16 = lambda: None
    type(get_accelerator()).is_fp16_supported = lambda self: True
    config.LOSS_SCALE["initial_scale_power"] = 22


def loss_scale_forgotten() -> None:
    fp16_anywhere()
    train.loss_scale.restore = lambda engine, saved: None


def validation_with_dropout() -> None:
    DeepSpeedEngine.eval = lambda self: self  # type: ignore[method-assign]
    PipelineModule.eval = lambda self: self  # type: ignore[method-assign]


def replicas_validate_the_same() -> None:
    own_nats = Validation._own_nats

    def on_the_first(validation: Validation, engine: DeepSpeedEngine) -> object:
        validation._ranks = dataclasses.replace(validation._ranks, dp_rank=0)
        return own_nats(validation, engine)

    Validation._own_nats = on_the_first  # type: ignore[method-assign, assignment]


def counted() -> None:
    """No mistake: each attempt that trains to the end is a line of a file, and so is one that finds another at work.

    The file is ANTHESIS_TEST_COUNTS, the line "<job> <fencing token> done" or "<job> <fencing token> TWICE AT ONCE".
    """
    run = train.run

    def counting(spec: config.RunSpec, folder: JobFolder, progress: train.ProgressWriter | None) -> None:
        counts = Path(os.environ["ANTHESIS_TEST_COUNTS"])
        with counts.with_name(f"{spec.job_id}.lock").open("w") as lock, counts.open("a", buffering=1) as lines:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
            except BlockingIOError:
                lines.write(f"{spec.job_id} {spec.fencing_token} TWICE AT ONCE\n")
                raise
            run(spec, folder, progress)
            lines.write(f"{spec.job_id} {spec.fencing_token} done\n")

    train.run = counting


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    train.main(sys.argv[2])
