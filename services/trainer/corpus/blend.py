"""A blend of corpora: which shards, in which shares; a YAML file that says so; and its windows, as training reads them.

    split: [0, 0.95]                       # of each source's documents; default: all
    corpora:
      fr: {weight: 0.7, files: [web/fr, books/fr]}      # joined: each as often as it is long
      en: {weight: 0.3, files: {web/en: 2, books/en: 1}}  # shares of their own

Paths are prefixes of shards, below the folder of all corpora. Weights are shares of samples, of any sum. Without any,
corpora come as often as they are long.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from services.trainer.corpus.indexed import idx_path
from services.trainer.corpus.interleave import Interleave
from services.trainer.corpus.shards import find_shards
from services.trainer.corpus.stream import Split, TokenStream
from services.trainer.dataset import MicroBatch, shortened
from services.trainer.failure import JobFailure


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Shards that are read as one, in a share of the samples."""

    name: str  # "fr", or "en: web/en" for a file with a weight of its own
    weight: Fraction | None  # None, of all: as long as it is
    prefixes: tuple[Path, ...]

    def shards(self) -> list[Path]:
        """Raises JobFailure where there is none, or not all of a run's."""
        return [shard for prefix in self.prefixes for shard in find_shards(prefix)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Blend:
    sources: tuple[Source, ...]
    split: Split = (0.0, 1.0)

    def fingerprint(self) -> str:
        """A digest of the sources' names, weights and indexes; equal lengths of other tokens would pass."""
        digest = hashlib.sha256(repr(self.split).encode())
        for source in self.sources:
            digest.update(f"\n{source.name} {source.weight}".encode())
            for shard in source.shards():
                with idx_path(shard).open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def parse_blend(text: str, folder: Path) -> Blend:
    """A blend from YAML; its paths lie below `folder`. Raises JobFailure."""
    try:
        fields = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _bad(f"is no YAML: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("corpora"), dict) or not fields["corpora"]:
        raise _bad("has no 'corpora': {name: {weight: …, files: […]}, …}")
    unknown = set(fields) - {"corpora", "split"}
    if unknown:
        raise _bad(f"has {', '.join(map(repr, unknown))}; it takes 'corpora' and 'split'")
    sources = [source for name, corpus in fields["corpora"].items() for source in _sources(str(name), corpus, folder)]
    if len({source.weight is None for source in sources}) > 1:
        missing = next(source.name for source in sources if source.weight is None)
        raise _bad(f"has no weight for {missing}; give all a weight, or none")
    return Blend(sources=tuple(sources), split=_split(fields.get("split", [0, 1])))


def _sources(name: str, corpus: Any, folder: Path) -> Iterator[Source]:
    files = corpus.get("files") if isinstance(corpus, dict) else None
    if not isinstance(files, (list, dict)) or not files or set(corpus) - {"weight", "files"}:
        raise _bad(f"has a corpus {name!r} that is not {{weight: …, files: […]}}")
    weight = _weight(name, corpus["weight"]) if "weight" in corpus else None
    if isinstance(files, list):
        yield Source(name=name, weight=weight, prefixes=tuple(_below(folder, str(file)) for file in files))
        return
    weights = {str(file): _weight(f"{name}: {file}", value) for file, value in files.items()}
    for file, part in weights.items():
        share = (Fraction(1) if weight is None else weight) * part / sum(weights.values())
        yield Source(name=f"{name}: {file}", weight=share, prefixes=(_below(folder, file),))


def _below(folder: Path, file: str) -> Path:
    """Where a blend's file lies. A blend comes from a job's submitter, who is to read no other folder."""
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise _bad(f"has the path {file!r}; give it relative to {folder}, without '..' (a link there may lead out)")
    return folder / file


def _weight(name: str, value: Any) -> Fraction:
    if not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise _bad(f"has weight {value!r} for {name}; give a number above 0, or leave it out of the blend")
    return Fraction(str(value))  # the decimals as they were written


def _split(value: Any) -> Split:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(isinstance(part, (int, float)) for part in value)
        or not 0 <= value[0] < value[1] <= 1
    ):
        raise _bad(f"has split {value!r}; give two numbers from 0 to 1, the lower first, as [0, 0.95]")
    return float(value[0]), float(value[1])


def _bad(what: str) -> JobFailure:
    return JobFailure("BAD_DATA", f"the blend {what}", "datasets")


class BlendWindows:
    """A blend's windows in training order: a pure function of blend, seed and samples consumed.

    What `services.trainer.dataset.Windows` is for a job's own rows.
    """

    def __init__(self, blend: Blend, *, sequence_length: int, seed: int, vocab_size: int) -> None:
        """vocab_size: rows of the embedding. Raises JobFailure for shards that are damaged or too short."""
        self._length = sequence_length
        self._vocab_size = vocab_size
        self._blend = blend
        self._streams = [
            TokenStream(source.shards(), sequence_length, f"{seed}/{source.name}", split=blend.split)
            for source in blend.sources
        ]
        self.num_windows = sum(stream.num_windows for stream in self._streams)  # all of them once
        self._interleave = Interleave(
            [
                Fraction(stream.num_windows) if source.weight is None else source.weight
                for source, stream in zip(blend.sources, self._streams, strict=True)
            ]
        )

    def source(self, sample: int) -> str:
        """The name of the source that a sample comes from."""
        return self._blend.sources[self._interleave.at(sample)[0]].name

    def where(self, start: int, count: int) -> str:
        """Which windows of which source these samples are."""
        by_source: dict[int, list[int]] = {}
        for sample in range(start, start + count):
            source, number = self._interleave.at(sample)
            by_source.setdefault(source, []).append(number)
        named = ((self._blend.sources[source].name, numbers) for source, numbers in sorted(by_source.items()))
        return "; ".join(shortened(f"{name}: windows", numbers) for name, numbers in named)

    def num_targets(self, start: int, count: int) -> int:
        """Targets with a loss in samples start .. start + count - 1: all."""
        return count * self._length

    def micro_batch(self, start: int, count: int) -> MicroBatch:
        """Samples start .. start + count - 1. Raises JobFailure for ids that the embedding has no row for."""
        tokens = np.stack([self._window(sample) for sample in range(start, start + count)])
        inputs, targets = (np.ascontiguousarray(part) for part in (tokens[:, :-1], tokens[:, 1:]))
        return MicroBatch(inputs=inputs, targets=targets, segments=None)

    def _window(self, sample: int) -> NDArray[np.int64]:
        source, number = self._interleave.at(sample)
        ids = self._streams[source].window(number)
        if ids.min() < 0 or ids.max() >= self._vocab_size:
            found = int(ids.max() if ids.min() >= 0 else ids.min())
            what = f"a token {found} outside the vocabulary of {self._vocab_size}"
            remedy = "use the tokenizer that the shards were made with"
            where = f"sample {sample}, of {self._blend.sources[source].name},"
            raise JobFailure("BAD_DATA", f"{where} has {what}; {remedy}", "datasets")
        return ids
