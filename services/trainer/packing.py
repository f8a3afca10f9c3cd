"""Documents and examples to windows: streams are cut, examples are packed whole.

S = sequence length. A document of n + 1 tokens makes n (input, target) pairs.
"""

from collections.abc import Iterable, Iterator
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


@dataclass(frozen=True, slots=True)
class Example:
    inputs: list[int]
    targets: list[int]  # what follows each input; IGNORE where that is not learnt

    @classmethod
    def of(cls, parts: Iterable[tuple[list[int], bool]], end: int) -> "Example":
        """An example of ids in parts, with whether they are learnt; behind each part that is, `end` is learnt, too.

        `end` is a target and no input: a conversation goes on as a client sends it, who has no token for `end`.
        """
        inputs: list[int] = []
        expected: list[int] = []  # in place of each input
        ends: list[int] = []
        for ids, is_learnt in parts:
            inputs += ids
            expected += ids if is_learnt else [IGNORE] * len(ids)
            if is_learnt and inputs:
                ends.append(len(inputs) - 1)
        targets = [*expected[1:], IGNORE] if inputs else []
        for last in ends:
            targets[last] = end
        return cls(inputs, targets)

    def fit(self, sequence_length: int) -> "Example":
        """Shortened to a window: what comes before the first target goes first, the oldest of it, then the end."""
        excess = len(self.inputs) - sequence_length
        if excess <= 0:
            return self
        before = next((i for i, target in enumerate(self.targets) if target != IGNORE), 0)
        kept = slice(min(excess, before), min(excess, before) + sequence_length)
        return Example(self.inputs[kept], self.targets[kept])


def pack(examples: Iterator[Example], sequence_length: int) -> Iterator[Window]:
    """Pack whole examples into windows, first fit."""
    open_windows: list[Window] = []
    for example in examples:
        fitted = example.fit(sequence_length)
        window = next((w for w in open_windows if len(w.inputs) + len(fitted.inputs) <= sequence_length), None)
        if window is None:
            if len(open_windows) == OPEN_WINDOWS:
                yield open_windows.pop(max(range(OPEN_WINDOWS), key=lambda i: len(open_windows[i].inputs)))
            window = Window()
            open_windows.append(window)
        window.add(fitted.inputs, fitted.targets, window.segments[-1] + 1 if window.segments else 0)
    yield from open_windows
