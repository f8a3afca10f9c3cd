"""Documents and examples to windows: streams are cut, examples are packed whole.

S = sequence length. A document of n + 1 tokens makes n (input, target) pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.trainer.dataset import IGNORE

OPEN_WINDOWS = 64  # how many half-full windows an example may choose from
PAD = 3  # BLOOM's <pad>; never attended to by what has a loss


@dataclass(slots=True)
class Window:
    inputs: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)

    def add(self, inputs: list[int], targets: list[int], segment: int) -> None:
        self.inputs += inputs
        self.targets += targets
        self.segments += [segment] * len(inputs)


class WindowWriter:
    """Appends windows to a folder's raw arrays, padded to S."""

    def __init__(self, folder: Path, sequence_length: int, *, packed: bool) -> None:
        self._length = sequence_length
        self._inputs = (folder / "inputs.bin").open("wb")
        self._targets = (folder / "targets.bin").open("wb")
        self._segments = (folder / "segments.bin").open("wb") if packed else None
        self.num_windows = 0
        self.num_targets = 0

    def write(self, window: Window) -> None:
        targets = self._padded(window.targets, IGNORE, np.int32)
        self._inputs.write(self._padded(window.inputs, PAD, np.int32).tobytes())
        self._targets.write(targets.tobytes())
        if self._segments:
            padding = max(window.segments, default=0) + 1  # a segment of its own: nothing attends to it
            self._segments.write(self._padded(window.segments, padding, np.uint16).tobytes())
        self.num_windows += 1
        self.num_targets += int((targets != IGNORE).sum())

    def _padded(self, values: list[int], fill: int, dtype: type) -> NDArray[np.int32]:
        array: NDArray[np.int32] = np.full(self._length, fill, dtype)
        array[: len(values)] = values
        return array

    def close(self) -> None:
        for file in (self._inputs, self._targets, self._segments):
            if file:
                file.close()


def cut_stream(documents: Iterator[list[int]], sequence_length: int, first_length: int) -> Iterator[Window]:
    """Cut documents, joined, into windows with a loss on every token but the very first.

    The first window holds `first_length` pairs, so that passes with other first lengths cut elsewhere; the last may be
    shorter.
    """
    stream: list[int] = []
    start, length = 0, first_length
    for document in documents:
        stream += document
        while len(stream) - start > length:
            piece = stream[start : start + length + 1]
            yield Window(piece[:-1], piece[1:], [0] * length)
            start, length = start + length, sequence_length
        stream, start = stream[start:], 0
    if len(stream) > 1:
        yield Window(stream[:-1], stream[1:], [0] * (len(stream) - 1))


def fit(inputs: list[int], targets: list[int], sequence_length: int) -> tuple[list[int], list[int]]:
    """Shorten an example to a window: the oldest input goes first, then the end of the targets."""
    excess = len(inputs) + len(targets) - (sequence_length + 1)
    if excess <= 0:
        return inputs, targets
    from_inputs = min(excess, max(0, len(inputs) - 1))
    return inputs[from_inputs:], targets[: sequence_length + 1 - len(inputs) + from_inputs]


def pack(examples: Iterator[tuple[list[int], list[int]]], sequence_length: int) -> Iterator[Window]:
    """Pack whole examples (input ids, target ids) into windows, first fit; the loss is on targets only."""
    open_windows: list[Window] = []
    for example in examples:
        inputs, targets = fit(*example, sequence_length)
        ids = inputs + targets
        # The last input token predicts the first target; earlier ones predict without loss.
        expected = [IGNORE] * (len(inputs) - 1) + targets if inputs else targets[1:]
        window = next((w for w in open_windows if len(w.inputs) + len(ids) - 1 <= sequence_length), None)
        if window is None:
            if len(open_windows) == OPEN_WINDOWS:
                yield open_windows.pop(max(range(OPEN_WINDOWS), key=lambda i: len(open_windows[i].inputs)))
            window = Window()
            open_windows.append(window)
        window.add(ids[:-1], expected, window.segments[-1] + 1 if window.segments else 0)
    yield from open_windows
