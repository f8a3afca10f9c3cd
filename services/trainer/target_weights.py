"""Each example as one, however long its targets are: what the BLOOMZ recipe's --norm-target-loss weighs targets by.

B = windows, S = sequence length. Source: Megatron-DeepSpeed, branch t0loading, `fast_normalize`. It counts the targets
of a stretch without a gap, and this those of an example: the same where an example's targets are one stretch. The mean
there is over a micro-batch, here over a step.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from services.trainer.dataset import IGNORE, MicroBatch, Windows

Ids = NDArray[np.integer]


def target_weights(targets: Ids, segments: Ids) -> NDArray[np.float32]:
    """1 / (number of its example's targets) at each target, 0 at IGNORE: (B, S), of targets and segments (B, S)."""
    counts, examples = _counts(targets, segments)
    return np.where(targets != IGNORE, 1 / np.maximum(counts[examples], 1), 0).astype(np.float32)


def num_examples(targets: Ids, segments: Ids) -> int:
    """Examples that have a target: what the weights of all their targets add up to."""
    return int(np.count_nonzero(_counts(targets, segments)[0]))


def _counts(targets: Ids, segments: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Targets of each example, and which example each token (B, S) belongs to."""
    per_window = int(segments.max(initial=0)) + 1
    examples = np.arange(len(segments))[:, None] * per_window + segments
    return np.bincount(examples[targets != IGNORE], minlength=len(segments) * per_window), examples


class NormalizedWindows(Windows):
    """Packed windows in which each example counts as one target."""

    def num_targets(self, start: int, count: int) -> int:
        """Examples with a target in samples start .. start + count - 1."""
        samples = (self.micro_batch(sample, 1) for sample in range(start, start + count))
        return sum(num_examples(*_packed(sample)) for sample in samples)

    def micro_batch(self, start: int, count: int) -> MicroBatch:
        """Samples start .. start + count - 1, with the weights of their targets."""
        batch = super().micro_batch(start, count)
        return replace(batch, target_weights=target_weights(*_packed(batch)))


def _packed(batch: MicroBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    assert batch.segments is not None, "prepare.py lets examples alone be normalised"
    return batch.targets, batch.segments
