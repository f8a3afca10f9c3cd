"""The loss on validation windows while a run trains: bits per byte, by dataset and language.

B = sequences of a micro-batch. Collective over all ranks: replicas share the micro-batches, each of one group's
windows. Nothing of training's state is touched: no gradient, no dropout, no random number.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from services.trainer.config import TrainConfig
from services.trainer.progress import ValidationLoss
from services.trainer.ranks import Ranks
from services.trainer.validation_windows import ValidationWindows

TOGETHER = 16  # micro-batches of a replica between two signs of life, and four for each stage

Batch = tuple[Tensor, Tensor, Tensor]  # inputs, targets, segments, each (B, S)


class Validation:
    """Of one run, on one rank."""

    def __init__(self, folder: Path, config: TrainConfig, ranks: Ranks, sign: Path) -> None:
        """folder: prepare's windows. sign: what rank 0 touches while it lasts, for whoever watches for hanging."""
        self._windows = ValidationWindows(folder, config.sequence_length)
        self._config = config
        self._ranks = ranks
        self._sign = sign
        size = config.micro_batch
        self._parts = [  # (group, first window, number of windows): a micro-batch each
            (index, first, min(size, group.first + group.num_windows - first))
            for index, group in enumerate(self._windows.groups)
            for first in range(group.first, group.first + group.num_windows, size)
        ]

    def is_due(self, step: int, total_steps: int) -> bool:
        """Whether to validate after `step` steps."""
        return step % self._config.validate_every_steps == 0 or step == total_steps

    def losses(self, engine: Any) -> tuple[ValidationLoss, ...]:
        """Of the weights as they are; collective. In the order of the datasets."""
        nats = torch.from_numpy(self._own_nats(engine)).to(engine.device)
        dist.all_reduce(nats)
        return tuple(
            ValidationLoss(
                dataset=group.dataset,
                language=group.language,
                bits_per_byte=total / math.log(2) / group.num_bytes,
                num_bytes=group.num_bytes,
            )
            for group, total in zip(self._windows.groups, nats.tolist(), strict=True)
        )

    def _own_nats(self, engine: Any) -> NDArray[np.float64]:
        """What this rank is to add to each group's sum: every micro-batch is counted by one rank."""
        pp, dp = self._config.layout.pp, self._config.layout.dp
        nats = np.zeros(len(self._windows.groups))
        own = self._parts[self._ranks.dp_rank :: dp]
        num_rounds = -(-len(self._parts) // dp)  # alike on all replicas
        together = max(TOGETHER, 4 * pp)
        for start in range(0, num_rounds, together):
            count = min(together, num_rounds - start)
            parts = own[start : start + count]
            batches = self._batches(parts, count)
            found = pipelined_losses(engine, batches, count) if pp > 1 else losses(engine, batches)
            if self._ranks.tp_rank == 0 and found:  # tensor-parallel ranks have the same, stages before the last none
                np.add.at(nats, [group for group, _, _ in parts], found[: len(parts)])
            if dist.get_rank() == 0:
                self._sign.touch()
        return nats

    def _batches(self, parts: list[tuple[int, int, int]], count: int) -> Iterator[Batch]:
        """`count` micro-batches; those after the last part have nothing to score."""
        for _, first, num_windows in [*parts, *[(0, 0, 0)] * (count - len(parts))]:
            batch = self._windows.micro_batch(first, num_windows, self._config.micro_batch)
            assert batch.segments is not None
            yield torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets), torch.from_numpy(batch.segments)


def losses(engine: Any, batches: Iterator[Batch]) -> list[float]:
    """Summed loss of each micro-batch, where every rank has all layers."""
    engine.eval()
    try:
        with torch.no_grad():
            return [float(engine(*(tensor.to(engine.device) for tensor in batch), 1.0)) for batch in batches]
    finally:
        engine.train()


def pipelined_losses(engine: Any, batches: Iterator[Batch], count: int) -> list[float]:
    """Summed loss of each of `count` micro-batches through all stages; [] on those before the last."""
    seed, scale = torch.zeros(1, dtype=torch.int64), torch.ones(1)
    data = (((inputs, seed, segments), (targets, scale)) for inputs, targets, segments in batches)
    engine.reset_activation_shape()  # segments travel, which they may not do in training
    found = engine.eval_batch(data, reduce_output=None, bcast_loss=False, num_micro_batches=count)
    engine.reset_activation_shape()
    engine.module.train()
    return [float(loss) for loss in found or ()]
