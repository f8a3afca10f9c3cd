"""A rank's program with one planted mistake: `python -m tests.support.mutated_training MISTAKE JOB_FOLDER`."""

import math
import sys

from deepspeed.runtime.pipe.engine import PipelineEngine

from bloom.alibi import slopes
from bloom.parallel import Shard
from services.trainer import train
from services.trainer.dataset import MicroBatch, Windows

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


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    train.main(sys.argv[2])
