"""Windows of tokens on disk, and their order: a pure function of the seed and of the samples consumed.

W = windows, S = sequence length, B = sequences of a micro-batch. A window is S inputs and S targets; IGNORE marks
targets without loss. Files are raw little-endian arrays, memory-mapped, written once by prepare.py.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

IGNORE = -100
MAX_SHOWN = 32  # windows that a message names


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowsMeta:
    """What `meta.json` says of a folder of windows."""

    sequence_length: int
    # Windows of each differently encoded pass over the data (one, unless BPE-dropout makes each epoch differ).
    variants: tuple[int, ...]
    packed: bool  # several examples share a window: segments.bin exists
    num_targets: int
    num_truncated: int  # examples longer than a window
    fingerprint: str  # drawn when written: other tokens, other fingerprint


@dataclass(frozen=True, slots=True)
class MicroBatch:
    inputs: NDArray[np.int64]  # (B, S)
    targets: NDArray[np.int64]  # (B, S), IGNORE where there is no loss
    segments: NDArray[np.int64] | None  # (B, S), example within the window; None: one document stream
    target_weights: NDArray[np.float32] | None = None  # (B, S), of each target's loss; None: 1


class Order:
    """Which window is the n-th sample: every epoch is one shuffled pass over one variant."""

    def __init__(self, variants: tuple[int, ...], seed: int) -> None:
        self._starts = np.cumsum([0, *variants])
        self._seed = seed
        self._permutation = lru_cache(maxsize=2)(self._shuffle)

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        variant = epoch % (len(self._starts) - 1)
        size = int(self._starts[variant + 1] - self._starts[variant])
        shuffled: NDArray[np.int64] = np.random.default_rng([self._seed, epoch]).permutation(size)
        shuffled += int(self._starts[variant])
        return shuffled

    def window(self, sample: int) -> int:
        cycle, rest = divmod(sample, int(self._starts[-1]))
        variant = int(np.searchsorted(self._starts, rest, side="right")) - 1
        epoch = cycle * (len(self._starts) - 1) + variant
        return int(self._permutation(epoch)[rest - self._starts[variant]])

    def windows(self, start: int, count: int) -> list[int]:
        """Windows of samples start .. start + count - 1."""
        return [self.window(sample) for sample in range(start, start + count)]


class Windows:
    """Token windows of a folder, in training order."""

    def __init__(self, folder: Path, seed: int) -> None:
        fields = json.loads((folder / "meta.json").read_text())
        self.meta = WindowsMeta(**{**fields, "variants": tuple(fields["variants"])})
        shape = (sum(self.meta.variants), self.meta.sequence_length)
        self.inputs: NDArray[np.int32] = np.memmap(folder / "inputs.bin", np.int32, "r", shape=shape)
        self.targets: NDArray[np.int32] = np.memmap(folder / "targets.bin", np.int32, "r", shape=shape)
        self.segments = np.memmap(folder / "segments.bin", np.uint16, "r", shape=shape) if self.meta.packed else None
        self._order = Order(self.meta.variants, seed)

    def num_targets(self, start: int, count: int) -> int:
        """Targets with a loss in samples start .. start + count - 1."""
        return int((self.targets[self._order.windows(start, count)] != IGNORE).sum())

    def micro_batch(self, start: int, count: int) -> MicroBatch:
        """Samples start .. start + count - 1."""
        rows = self._order.windows(start, count)
        return MicroBatch(
            inputs=self.inputs[rows].astype(np.int64),
            targets=self.targets[rows].astype(np.int64),
            segments=None if self.segments is None else self.segments[rows].astype(np.int64),
        )

    def where(self, start: int, count: int) -> str:
        """Which windows these samples are, by their place in the folder's files."""
        return shortened("windows", self._order.windows(start, count))


def shortened(name: str, numbers: Sequence[int]) -> str:
    """A name and its numbers, as many as a reader can bear."""
    rest = f" and {len(numbers) - MAX_SHOWN} more" if len(numbers) > MAX_SHOWN else ""
    return f"{name} {', '.join(map(str, numbers[:MAX_SHOWN]))}{rest}"


def write_meta(folder: Path, meta: WindowsMeta) -> None:
    (folder / "meta.json").write_text(json.dumps(asdict(meta)))
