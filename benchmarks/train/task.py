"""What every contestant does: the same model from the same weights, the same tokens, clocked alike.

A contestant is a process of its own, `python -m benchmarks.train.<module> <task as JSON>`, whose rows `__main__` reads.
"""

import json
import time
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.protocol import emit, status_bytes
from bloom.config import BloomConfig

SHAPES = {
    "250k": BloomConfig(hidden_size=1024, n_head=16, n_layer=8, vocab_size=250_880),
    "32k": BloomConfig(hidden_size=1024, n_head=16, n_layer=8, vocab_size=32_768),
}
# Variables of the only rank.
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
FIRST_ID = 10  # special tokens come before
SEED = 1
LEARNING_RATE, BETAS, WEIGHT_DECAY, CLIP = 1e-4, (0.9, 0.95), 0.1, 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    shape: str  # of SHAPES
    precision: str  # "bf16": fp32 weights, products in bf16; "fp32"
    steps: int  # that are clocked, behind one that is not
    deepspeed: bool = False  # of hugging_face.py: ZeRO-1 instead of its own loop
    micro_batch: int = 4  # sequences
    sequence_length: int = 512  # tokens
    threads: int = 2

    @property
    def config(self) -> BloomConfig:
        return SHAPES[self.shape]

    @property
    def tokens_per_step(self) -> int:
        return self.micro_batch * self.sequence_length

    @property
    def num_sequences(self) -> int:
        return (1 + self.steps) * self.micro_batch

    @classmethod
    def from_json(cls, text: str) -> "Task":
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def sequences(self) -> NDArray[np.int64]:
        """(num_sequences, S + 1): each step's inputs and, one further, its targets."""
        shape = (self.num_sequences, self.sequence_length + 1)
        return np.random.default_rng(SEED).integers(FIRST_ID, self.config.vocab_size, shape)


class Clock:
    """Emits a row for every step but the first."""

    def __init__(self) -> None:
        self._last: float | None = None

    def step_done(self, loss: float) -> None:
        now = time.perf_counter()
        if self._last is not None:
            emit("step", seconds=now - self._last, loss=loss)
        self._last = now

    @staticmethod
    def end(version: str) -> None:
        emit("end", peak_bytes=status_bytes("VmHWM"), version=version)
