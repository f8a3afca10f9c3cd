"""What a job learns from, in either form: windows of its own rows, or a blend of corpora that lie on disk."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from services.trainer.corpus.blend import Blend, BlendWindows, parse_blend
from services.trainer.corpus.manifest import load_manifest, manifest_path
from services.trainer.dataset import MicroBatch, Windows
from services.trainer.failure import JobFailure
from services.trainer.target_weights import NormalizedWindows

BLEND_FILE = "blend.json"


class TrainingWindows(Protocol):
    """Samples in training order: a pure function of the data, the seed and the sample's number."""

    def num_targets(self, start: int, count: int) -> int:
        """Targets in samples start .. start + count - 1; examples, where each counts as one target."""

    def micro_batch(self, start: int, count: int) -> MicroBatch:
        """Samples start .. start + count - 1."""

    def where(self, start: int, count: int) -> str:
        """What these samples are, for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlendSpec:
    """How a job reads a blend; kept as BLEND_FILE in its folder of windows."""

    text: str  # YAML
    corpora: str  # the folder that its paths are below
    sequence_length: int
    vocab_size: int  # of the tokenizer

    def open(self, seed: int) -> BlendWindows:
        return BlendWindows(self.blend(), sequence_length=self.sequence_length, seed=seed, vocab_size=self.vocab_size)

    def blend(self) -> Blend:
        return parse_blend(self.text, Path(self.corpora))


def open_windows(folder: Path, seed: int, *, normalize_targets: bool = False) -> TrainingWindows:
    """The windows that prepare.py has left in `folder`; normalize_targets: each example counts as one target."""
    if (folder / BLEND_FILE).exists():
        return BlendSpec(**json.loads((folder / BLEND_FILE).read_text())).open(seed)
    return NormalizedWindows(folder, seed) if normalize_targets else Windows(folder, seed)


def write_blend(spec: BlendSpec, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BLEND_FILE).write_text(json.dumps(asdict(spec)))


def check_tokenizer(blend: Blend, tokenizer_digest: str) -> None:
    """Raise JobFailure for shards that our command made with another tokenizer; others' shards do not say."""
    for source in blend.sources:
        for prefix in source.prefixes:
            path = manifest_path(prefix)
            if path.exists() and (found := load_manifest(path).tokenizer) != tokenizer_digest:
                remedy = "tokenize the corpus again, or train with its tokenizer"
                what = f"{prefix} was made with tokenizer {found}, the job has {tokenizer_digest}"
                raise JobFailure("BAD_DATA", f"{what}; {remedy}", "datasets")
