"""Texts that are never trained on, as windows of tokens: each token is a target once.

S = sequence length, B = sequences of a micro-batch. A text follows its context, or </s> where it has none, as in
training; the </s> after it is not scored. Where both are longer than a window, the context keeps its last S / 2 tokens
and the text goes on in further windows, which begin anew: a token sees what stands before it in its own window. Short
texts share a window and do not see each other.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from services.trainer.config import DatasetSpec, RunSpec
from services.trainer.dataset import IGNORE, MicroBatch
from services.trainer.encoder import Encoder
from services.trainer.failure import JobFailure
from services.trainer.multitask import ExampleMaker
from services.trainer.packing import PAD, Example, WindowWriter, pack

if TYPE_CHECKING:
    from services.trainer.prepare import Rows

VERSION = 1  # of the files; part of their name
ROWS_PER_BATCH = 512  # encoded together, in parallel
GROUPS = "groups.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A dataset's texts in one language: windows first .. first + num_windows - 1."""

    dataset: str
    language: str  # "": the rows name none
    num_bytes: int  # UTF-8, of the texts
    first: int
    num_windows: int


class ValidationWindows:
    """What `prepare_validation` has written."""

    def __init__(self, folder: Path, sequence_length: int) -> None:
        self.groups = [Group(**fields) for fields in json.loads((folder / GROUPS).read_text())]
        shape = (sum(group.num_windows for group in self.groups), sequence_length)
        self._inputs = np.memmap(folder / "inputs.bin", np.int32, "r", shape=shape)
        self._targets = np.memmap(folder / "targets.bin", np.int32, "r", shape=shape)
        self._segments = np.memmap(folder / "segments.bin", np.uint16, "r", shape=shape)

    def micro_batch(self, first: int, count: int, size: int) -> MicroBatch:
        """Windows first .. first + count - 1 as a micro-batch of `size`; what is more is nothing to score."""

        def padded(array: NDArray[np.generic], fill: int) -> NDArray[np.int64]:
            rows: NDArray[np.int64] = np.full((size, array.shape[1]), fill, np.int64)
            rows[:count] = array[first : first + count]
            return rows

        return MicroBatch(
            inputs=padded(self._inputs, PAD), targets=padded(self._targets, IGNORE), segments=padded(self._segments, 0)
        )


def prepare_validation(spec: RunSpec, sources: list[tuple[DatasetSpec, "Rows"]], encoder: Encoder) -> Path:
    """The folder of a job's validation windows, written unless a job with the same ones has. Raises JobFailure.

    encoder: without BPE-dropout.
    """
    if encoder.eos is None:
        raise JobFailure("BAD_TOKENIZER", "the tokenizer has no token '</s>', which texts of validation follow")
    digests = [(dataset.name, dataset.format, dataset.digest) for dataset in spec.validation]
    parts = [VERSION, digests, spec.tokenizer_digest, spec.config.sequence_length]
    name = f"validation-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"
    folder = Path(spec.data_dir) / "cache" / "tokens" / name
    if not folder.exists():
        building = folder.with_name(f"{name}.{uuid.uuid4().hex}")
        building.mkdir(parents=True)
        try:
            write_validation(sources, encoder, spec.config.sequence_length, building)
            os.replace(building, folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return folder


def write_validation(
    sources: list[tuple[DatasetSpec, "Rows"]], encoder: Encoder, sequence_length: int, folder: Path
) -> None:
    """Write windows and groups. Raises JobFailure for a bad row."""
    writer = WindowWriter(folder, sequence_length, packed=True)
    groups = []
    for dataset, rows in sources:
        for language, chosen in sorted(_rows_by_language(rows).items()):
            first, texts = writer.num_windows, _Texts(rows, chosen, encoder, examples=dataset.format == "multitask")
            for window in pack(texts.pieces(sequence_length), sequence_length):
                writer.write(window)
            num_windows = writer.num_windows - first
            groups.append(
                Group(
                    dataset=dataset.name,
                    language=language,
                    num_bytes=texts.num_bytes,
                    first=first,
                    num_windows=num_windows,
                )
            )
    writer.close()
    if not writer.num_windows:
        what = "the validation datasets hold no token to score; add rows with text"
        raise JobFailure("BAD_DATA", what, "validation_datasets")
    (folder / GROUPS).write_text(json.dumps([asdict(group) for group in groups if group.num_windows]))


def _rows_by_language(rows: "Rows") -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row in range(len(rows)):
        if (value := rows[row]) is not None:
            found.setdefault(str(value.get("language") or ""), []).append(row)
    return found


class _Texts:
    """Some rows' texts; counts their bytes as they are read."""

    def __init__(self, rows: "Rows", chosen: list[int], encoder: Encoder, *, examples: bool) -> None:
        self._rows, self._chosen, self._encoder = rows, chosen, encoder
        self._maker = ExampleMaker() if examples else None
        self.num_bytes = 0

    def pieces(self, sequence_length: int) -> Iterator[Example]:
        """All, each no longer than a window."""
        end = self._encoder.eos
        assert end is not None
        for start in range(0, len(self._chosen), ROWS_PER_BATCH):
            chosen = self._chosen[start : start + ROWS_PER_BATCH]
            texts = [text for row in chosen for pair in self._pairs(row) for text in pair]
            self.num_bytes += sum(len(text.encode()) for text in texts[1::2])
            ids = self._encoder.encode(texts)
            for context, targets in zip(ids[::2], ids[1::2], strict=True):
                for before, scored in cut(context or [end], targets, sequence_length):
                    yield scored_after(before, scored)

    def _pairs(self, row: int) -> list[tuple[str, str]]:
        """(context, text) of a row; of an example each of its answers, after all that stands before."""
        if self._maker is None:
            context, text = self._rows.texts(row, "?context", "text") or ("", "")
            return [(context, text)]
        pairs, before = [], ""
        for text, is_learnt in self._rows.example(row, self._maker, 0) or []:
            if is_learnt:
                pairs.append((before, text))
            before += text
        return pairs


def scored_after(context: list[int], targets: list[int]) -> Example:
    return Example((context + targets)[:-1], [IGNORE] * (len(context) - 1) + targets)


def cut(context: list[int], targets: list[int], sequence_length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Divide a text into (context, targets) that each fit a window: every target in one, in order."""
    if not targets:
        return
    room = sequence_length + 1 - len(targets)  # a window of n pairs holds n + 1 tokens
    context = context[-max(room, sequence_length // 2) :]
    start = sequence_length + 1 - len(context)
    yield context, targets[:start]
    while start < len(targets):
        yield targets[start - 1 : start], targets[start : start + sequence_length]
        start += sequence_length
