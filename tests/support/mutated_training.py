"""A rank's program with one planted mistake: `python -m tests.support.mutated_training MISTAKE JOB_FOLDER`."""

import dataclasses
import sys

from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.pipe.module import PipelineModule

from bloom.alibi import slopes
from bloom.parallel import Shard
from services.trainer import train
from services.trainer.validation import Validation


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


def validation_with_dropout() -> None:
    DeepSpeedEngine.eval = lambda self: self  # type: ignore[method-assign]
    PipelineModule.eval = lambda self: self  # type: ignore[method-assign]


def replicas_validate_the_same() -> None:
    own_nats = Validation._own_nats

    def on_the_first(validation: Validation, engine: DeepSpeedEngine) -> object:
        validation._ranks = dataclasses.replace(validation._ranks, dp_rank=0)
        return own_nats(validation, engine)

    Validation._own_nats = on_the_first  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    train.main(sys.argv[2])
