"""Before the ranks start: fetch what the job refers to and write its tokens, once.

Tokens are kept under a name made of all that they depend on, so a repeated or resumed job reads the same ones. This is
what makes BPE-dropout reproducible: the tokenizers library draws it from a generator that cannot be seeded.

Run as `python -m services.trainer.prepare JOB_FOLDER`.
"""

import dataclasses
import hashlib
import json
import math
import mmap
import os
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from services.common.artifacts import ArtifactStore
from services.common.chat import Part
from services.common.errors import DataLoss, InvalidArgument, NotFound
from services.trainer.brought import bring_checkpoint
from services.trainer.config import DatasetSpec, RunSpec, TrainConfig
from services.trainer.dataset import WindowsMeta, write_meta
from services.trainer.encoder import Encoder
from services.trainer.failure import JobFailure, recorded
from services.trainer.files import write_whole
from services.trainer.folder import JobFolder
from services.trainer.lease_file import end_with_lease
from services.trainer.multitask import ExampleMaker, check_normalizable, example_makers
from services.trainer.packing import Example, Window, WindowWriter, cut_stream, pack
from services.trainer.room import when_there_is_room
from services.trainer.validation_windows import prepare_validation
from services.trainer.windows import BlendSpec, check_tokenizer, write_blend

LAYOUT_VERSION = 1  # of the token files; part of their name
ROWS_PER_BATCH = 512  # encoded together, in parallel
MAX_VARIANTS = 1000  # differently encoded passes that are stored at most


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What prepare hands to the ranks, as `tokens.json`."""

    windows_folder: str
    fingerprint: str  # of the tokens: a checkpoint of others is not resumed
    total_steps: int
    vocab_size: int  # of the tokenizer, as trained: rows of the embedding it can reach
    num_truncated: int
    validation_folder: str = ""  # "": nothing to validate on

    @classmethod
    def load(cls, path: Path) -> "Prepared":
        return cls(**json.loads(path.read_text()))


class Rows:
    """A JSONL file, by row number, without holding it in memory."""

    def __init__(self, path: Path, dataset: DatasetSpec) -> None:
        self._dataset = dataset
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        ends = np.flatnonzero(np.frombuffer(self._bytes, np.uint8) == ord("\n")) + 1
        self._starts = np.unique(np.concatenate(([0], ends, [len(self._bytes)])))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, row: int) -> dict[str, Any] | None:
        """The row's object; None for a blank line."""
        line = self._bytes[int(self._starts[row]) : int(self._starts[row + 1])]
        if not line.strip():
            return None
        try:
            value = json.loads(line)
        except ValueError as error:
            raise self.bad(row, f"is no JSON: {error}") from None
        return value if isinstance(value, dict) else self._raise(row)

    def _raise(self, row: int) -> dict[str, Any]:
        raise self.bad(row, "is no JSON object")

    def bad(self, row: int, reason: str) -> JobFailure:
        return JobFailure("BAD_DATA", f"dataset {self._dataset.name!r}, row {row + 1} {reason}", "datasets")

    def texts(self, row: int, *keys: str) -> list[str] | None:
        """The row's strings under `keys`; a key after "?" may be absent."""
        value = self[row]
        if value is None:
            return None
        found = [value.get(key.lstrip("?"), "" if key.startswith("?") else None) for key in keys]
        for key, text in zip(keys, found, strict=True):
            if not isinstance(text, str):
                raise self.bad(row, f"has no string {key.lstrip('?')!r}")
        return [str(text) for text in found]

    def example(self, row: int, maker: ExampleMaker, draw: int) -> list[Part] | None:
        """The row as an example's text; None for a blank line, or where the template leaves the row out."""
        value = self[row]
        try:
            return None if value is None else maker.parts(value, draw)
        except ValueError as error:
            raise self.bad(row, str(error)) from error


class TokenWriter:
    """Writes one pass after another ("variants") of a job's datasets as windows."""

    def __init__(
        self,
        config: TrainConfig,
        sources: list[tuple[DatasetSpec, Rows]],
        makers: Mapping[str, ExampleMaker],
        encoder: Encoder,
        folder: Path,
    ) -> None:
        self._config = config
        self._sources = sources
        self._makers = makers  # by dataset
        self._encoder = encoder
        self._num_truncated = 0
        if encoder.eos is None:
            raise JobFailure("BAD_TOKENIZER", "the tokenizer has no token '</s>'; documents end with it")
        self._eos = encoder.eos
        packed = any(dataset.format != "text" for dataset, _ in sources)
        self._writer = WindowWriter(folder, config.sequence_length, packed=packed)
        self._packed = packed
        self._variants: list[int] = []

    def write_variant(self) -> None:
        before = self._writer.num_windows
        rng = np.random.default_rng([self._config.seed, len(self._variants)])
        for dataset, rows in self._sources:
            maker = self._makers[dataset.name]
            order = rng.permutation(len(rows))[: maker.task.max_examples]
            first_length = int(rng.integers(1, self._config.sequence_length + 1))
            windows = (
                self._text(rows, order, first_length)
                if dataset.format == "text"
                else self._multitask(rows, order, maker, rng.spawn(1)[0].integers(1 << 62, size=len(rows)))
            )
            for window in windows:
                self._writer.write(window)
        self._variants.append(self._writer.num_windows - before)

    @property
    def num_windows(self) -> int:
        return self._writer.num_windows

    @property
    def passes_differ(self) -> bool:
        """Whether another pass over the data gives other windows."""
        return bool(self._config.bpe_dropout) or any(
            len(task.templates) > 1 or (task.max_examples or len(rows)) < len(rows)
            for dataset, rows in self._sources
            for task in [self._makers[dataset.name].task]
        )

    def close(self) -> WindowsMeta:
        self._writer.close()
        if not self._writer.num_targets:
            raise JobFailure("BAD_DATA", "the datasets hold no token to learn; add rows with text", "datasets")
        return WindowsMeta(
            sequence_length=self._config.sequence_length,
            variants=tuple(self._variants),
            packed=self._packed,
            num_targets=self._writer.num_targets,
            num_truncated=self._num_truncated,
            fingerprint=uuid.uuid4().hex,
        )

    def _text(self, rows: Rows, order: np.ndarray[Any, Any], first_length: int) -> Iterator[Window]:
        documents = (
            context + text + [self._eos] for context, text in self._encoded(rows, order, "?context", "text")
        )  # fmt: skip
        return cut_stream(documents, self._config.sequence_length, first_length)

    def _multitask(
        self, rows: Rows, order: np.ndarray[Any, Any], maker: ExampleMaker, draws: np.ndarray[Any, Any]
    ) -> Iterator[Window]:
        """draws: a random number for each row."""
        return pack(self._counting_long(self._examples(rows, order, maker, draws)), self._config.sequence_length)

    def _counting_long(self, examples: Iterator[Example]) -> Iterator[Example]:
        for example in examples:
            self._num_truncated += len(example.inputs) > self._config.sequence_length
            yield example

    def _examples(
        self, rows: Rows, order: np.ndarray[Any, Any], maker: ExampleMaker, draws: np.ndarray[Any, Any]
    ) -> Iterator[Example]:
        for start in range(0, len(order), ROWS_PER_BATCH):
            made = (rows.example(int(row), maker, int(draws[row])) for row in order[start : start + ROWS_PER_BATCH])
            batch = [parts for parts in made if parts]
            ids = iter(self._encoder.encode([text for parts in batch for text, _ in parts]))
            for parts in batch:
                yield Example.of([(next(ids), is_learnt) for _, is_learnt in parts], self._eos)

    def _encoded(self, rows: Rows, order: np.ndarray[Any, Any], *keys: str) -> Iterator[tuple[list[int], list[int]]]:
        for start in range(0, len(order), ROWS_PER_BATCH):
            batch = [texts for row in order[start : start + ROWS_PER_BATCH] if (texts := rows.texts(int(row), *keys))]
            ids = self._encoder.encode([text for texts in batch for text in texts])
            yield from zip(ids[::2], ids[1::2], strict=True)


def windows_key(spec: RunSpec) -> str:
    """Name of the token files: a hash of all that they depend on."""
    config = spec.config
    parts: dict[str, Any] = {
        "version": LAYOUT_VERSION,
        "datasets": [(dataset.format, dataset.digest) for dataset in spec.datasets],
        "tokenizer": spec.tokenizer_digest,
        "sequence_length": config.sequence_length,
        "seed": config.seed,
        "bpe_dropout": config.bpe_dropout,
    }
    if config.max_examples_per_dataset:
        parts["max_examples_per_dataset"] = config.max_examples_per_dataset
    has_mixture = any(dataset.format == "mixture" for dataset in spec.datasets)
    if has_mixture:  # which calls datasets by name
        parts["names"] = [dataset.name.partition("@")[0] for dataset in spec.datasets]  # versions are in the digests
    if config.bpe_dropout or config.max_examples_per_dataset or has_mixture:  # epochs may differ
        parts["passes"] = [config.epochs, config.steps and config.steps * config.global_batch]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_windows(spec: RunSpec, store: ArtifactStore, encoder: Encoder, folder: Path) -> None:
    """Write the job's windows into `folder`, which appears complete or not at all."""
    makers = example_makers(spec, store)
    sources = [
        (dataset, Rows(store.local_path(dataset.digest), dataset))
        for dataset in spec.datasets
        if dataset.name in makers
    ]
    building = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    building.mkdir(parents=True)
    try:
        writer = TokenWriter(spec.config, sources, makers, encoder, building)
        writer.write_variant()
        if writer.passes_differ:
            for _ in range(min(_num_passes(spec.config, writer.num_windows), MAX_VARIANTS) - 1):
                writer.write_variant()
        write_meta(building, writer.close())
        os.replace(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _num_passes(config: TrainConfig, windows_per_pass: int) -> int:
    if config.epochs is not None:
        return math.ceil(config.epochs)
    # A pass's size varies a little: one more never hurts.
    return math.ceil(config.steps * config.global_batch / max(1, windows_per_pass)) + 1 if config.steps else 1


def num_steps(config: TrainConfig, variants: tuple[int, ...]) -> int:
    """Optimizer steps of the run."""
    if config.steps is not None:
        return config.steps
    epochs = config.epochs or 0.0
    whole = int(epochs)
    samples = sum(variants[epoch % len(variants)] for epoch in range(whole))
    samples += round((epochs - whole) * variants[whole % len(variants)])
    return config.steps_of(samples)


def prepare(spec: RunSpec, folder: JobFolder) -> Prepared:
    """Fetch the job's artifacts, write its tokens unless they are there. Raises JobFailure."""
    store = spec.store()
    try:
        check_normalizable(spec)
        encoder = Encoder(store.local_path(spec.tokenizer_digest), spec.config.bpe_dropout)
        if any(dataset.format == "blend" for dataset in spec.datasets):
            prepared = prepare_blend(spec, store, encoder, folder)
        else:
            prepared = prepare_rows(spec, store, encoder)
        if spec.validation:
            sources = [(dataset, Rows(store.local_path(dataset.digest), dataset)) for dataset in spec.validation]
            held_out = prepare_validation(spec, sources, Encoder(store.local_path(spec.tokenizer_digest)))
            prepared = dataclasses.replace(prepared, validation_folder=str(held_out))
        if spec.base_files:
            store.materialize(spec.base_files, folder.base)
    except (NotFound, DataLoss, InvalidArgument) as error:
        raise JobFailure("BAD_ARTIFACT", str(error)) from error
    return prepared


def prepare_rows(spec: RunSpec, store: ArtifactStore, encoder: Encoder) -> Prepared:
    """Write the windows of uploaded rows, unless a job with the same ones has. Raises JobFailure."""
    windows = Path(spec.data_dir) / "cache" / "tokens" / windows_key(spec)
    if not (windows / "meta.json").exists():
        write_windows(spec, store, encoder, windows)
    meta = json.loads((windows / "meta.json").read_text())
    return Prepared(
        windows_folder=str(windows),
        fingerprint=meta["fingerprint"],
        total_steps=num_steps(spec.config, tuple(meta["variants"])),
        vocab_size=encoder.vocab_size,
        num_truncated=meta["num_truncated"],
    )


def prepare_blend(spec: RunSpec, store: ArtifactStore, encoder: Encoder, folder: JobFolder) -> Prepared:
    """Check the shards of a job's blend. Raises JobFailure."""
    if len(spec.datasets) > 1:
        names = ", ".join(dataset.name for dataset in spec.datasets)
        raise JobFailure("BAD_DATA", f"a blend goes alone, but the job has {names}; tokenize rows into it", "datasets")
    if spec.config.bpe_dropout:
        what = f"bpe_dropout={spec.config.bpe_dropout} needs text, and a blend is of tokens"
        raise JobFailure("BAD_DATA", f"{what}; set it to 0", "bpe_dropout")
    blend_spec = BlendSpec(
        text=store.local_path(spec.datasets[0].digest).read_text(errors="replace"),
        corpora=str(Path(spec.data_dir) / "corpora"),
        sequence_length=spec.config.sequence_length,
        vocab_size=encoder.vocab_size,
    )
    check_tokenizer(blend_spec.blend(), spec.tokenizer_digest)
    windows = blend_spec.open(spec.config.seed)
    write_blend(blend_spec, folder.blend)
    return Prepared(
        windows_folder=str(folder.blend),
        fingerprint=blend_spec.blend().fingerprint(),
        total_steps=num_steps(spec.config, (windows.num_windows,)),
        vocab_size=encoder.vocab_size,
        num_truncated=0,
    )


def main(job_folder: str) -> None:
    folder = JobFolder(Path(job_folder))
    spec = RunSpec.load(folder.run)
    end_with_lease(folder.lease, spec.fencing_token)
    with recorded(folder.failure(spec.fencing_token)):
        prepared = when_there_is_room(lambda: prepare(spec, folder))
        when_there_is_room(lambda: bring_checkpoint(spec, folder, prepared.total_steps))
        when_there_is_room(lambda: write_whole(folder.tokens, json.dumps(asdict(prepared))))


if __name__ == "__main__":
    main(sys.argv[1])
