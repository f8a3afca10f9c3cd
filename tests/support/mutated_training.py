"""A rank's program with one planted mistake: `python -m tests.support.mutated_training MISTAKE JOB_FOLDER`."""

import sys

from deepspeed.runtime.pipe.engine import PipelineEngine

from bloom.alibi import slopes
from bloom.parallel import Shard
from services.trainer import train


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


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    train.main(sys.argv[2])
