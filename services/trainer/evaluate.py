"""The bits that a version needs for each text of a suite: `python -m services.trainer.evaluate JOB_FOLDER`.

Texts are cut as for validation (validation_windows.py), but not packed, so that each has its own figure. In fp32, by
one process: on a GPU where there is one. B = pieces of texts computed together, S = the longest of them, T = B * S.
"""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from bloom.alibi import slopes
from bloom.attention import DenseCausalAttention
from bloom.model import BloomModel
from bloom.weights import load_model
from services.common.artifacts import ArtifactStore
from services.common.errors import DataLoss, InvalidArgument, NotFound
from services.trainer.dataset import IGNORE
from services.trainer.encoder import Encoder
from services.trainer.evaluation import EvaluationSpec
from services.trainer.failure import JobFailure, recorded
from services.trainer.files import write_whole
from services.trainer.folder import JobFolder
from services.trainer.lease_file import end_with_lease
from services.trainer.multitask import ExampleMaker
from services.trainer.packing import PAD, Example
from services.trainer.prepare import Rows
from services.trainer.progress import Progress, ProgressWriter, ValidationLoss
from services.trainer.validation_windows import ROWS_PER_BATCH, cut, scored_after, text_pairs

TOKENS_TOGETHER = 4096  # T, at most, but for one piece
LOGITS_BYTES = 192 << 20  # of fp32 logits held at a time


@dataclass(slots=True)
class Texts:
    """Of a suite, in its order. A piece is as much of a text as fits a window."""

    languages: list[str]
    num_bytes: list[int]  # UTF-8
    pieces: list[tuple[int, Example]]  # (text, what is scored after what)


def read_texts(spec: EvaluationSpec, store: ArtifactStore, encoder: Encoder) -> Texts:
    """Texts without a byte are left out. Raises JobFailure for a bad row."""
    if encoder.eos is None:
        raise JobFailure("BAD_TOKENIZER", "the tokenizer has no token '</s>', which the texts of a suite follow")
    found = Texts([], [], [])
    for dataset in spec.datasets:
        rows = Rows(store.local_path(dataset.digest), dataset)
        maker = ExampleMaker() if dataset.format == "multitask" else None
        for start in range(0, len(rows), ROWS_PER_BATCH):
            _add(found, rows, range(start, min(start + ROWS_PER_BATCH, len(rows))), maker, encoder, spec)
    if not found.pieces:
        raise JobFailure("BAD_DATA", f"suite {spec.suite} holds no token to score; make one of rows with text", "suite")
    return found


def _add(
    found: Texts, rows: Rows, chosen: range, maker: ExampleMaker | None, encoder: Encoder, spec: EvaluationSpec
) -> None:
    """Each row is a document; one of several answers has pieces of all of them."""
    documents = [(row, [pair for pair in text_pairs(rows, row, maker) if pair[1]]) for row in chosen]
    ids = iter(encoder.encode([text for _, pairs in documents for pair in pairs for text in pair]))
    for row, pairs in documents:
        if not pairs:
            continue
        for _ in pairs:
            context, targets = next(ids), next(ids)
            pieces = cut(context or [encoder.eos or 0], targets, spec.sequence_length)
            found.pieces += [(len(found.languages), scored_after(*piece)) for piece in pieces]
        value = rows[row]
        assert value is not None
        found.languages.append(str(value.get("language") or ""))
        found.num_bytes.append(sum(len(text.encode()) for _, text in pairs))


class Measuring:
    """Of one version; counts as it goes."""

    def __init__(self, model: BloomModel, texts: Texts, device: str) -> None:
        self._model = model
        self._texts = texts
        self._device = device
        self.nats = np.zeros(len(texts.languages))  # of each text
        order = sorted(range(len(texts.pieces)), key=lambda index: -len(texts.pieces[index][1].inputs))
        self.batches = list(_together([texts.pieces[index] for index in order]))

    def steps(self) -> Iterator[tuple[int, float]]:
        """Compute one batch after another; yields the tokens scored so far, and their mean loss in nats."""
        num_tokens, total = 0, 0.0
        for batch in self.batches:
            found = nats(self._model, [example for _, example in batch], self._device)
            np.add.at(self.nats, [text for text, _ in batch], found)
            num_tokens += sum(target != IGNORE for _, example in batch for target in example.targets)
            total += float(found.sum())
            yield num_tokens, total / num_tokens

    def documents(self) -> dict[str, list[tuple[float, int]]]:
        """Language -> (bits, bytes) of each text, in the suite's order."""
        documents: dict[str, list[tuple[float, int]]] = {}
        bits = (self.nats / math.log(2)).tolist()
        for language, found, num_bytes in zip(self._texts.languages, bits, self._texts.num_bytes, strict=True):
            documents.setdefault(language, []).append((found, num_bytes))
        return documents


def _together(pieces: Sequence[tuple[int, Example]]) -> Iterator[list[tuple[int, Example]]]:
    """Batches of pieces, which come the longest first: so few tokens of a batch are padding."""
    start = 0
    while start < len(pieces):
        count = max(1, TOKENS_TOGETHER // len(pieces[start][1].inputs))
        yield list(pieces[start : start + count])
        start += count


@torch.no_grad()
def nats(model: BloomModel, examples: Sequence[Example], device: str) -> NDArray[np.float64]:
    """(B,) summed loss of each example's targets. Padding stands behind, where nothing that counts sees it."""
    length = max(len(example.inputs) for example in examples)
    inputs = _padded([example.inputs for example in examples], length, PAD).to(device)  # (B, S)
    targets = _padded([example.targets for example in examples], length, IGNORE).to(device)
    attend = DenseCausalAttention(slopes(model.config.n_head), len(examples), length, device=device)
    hidden = model(inputs.view(-1), attend)  # (T, H)
    scored = (targets.view(-1) != IGNORE).nonzero()[:, 0]
    sums = torch.zeros(len(examples), dtype=torch.float64, device=device)
    for chunk in torch.split(scored, max(1, LOGITS_BYTES // (4 * model.config.vocab_size))):
        losses = F.cross_entropy(model.logits(hidden[chunk]).float(), targets.view(-1)[chunk], reduction="none")
        sums.index_add_(0, chunk // length, losses.double())
    return np.asarray(sums.cpu().numpy())


def _padded(rows: Sequence[Sequence[int]], length: int, fill: int) -> torch.Tensor:
    padded = torch.full((len(rows), length), fill, dtype=torch.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return padded


def measure(spec: EvaluationSpec, folder: JobFolder, progress: ProgressWriter) -> None:
    """Measure, store what each text took, and write that artifact's digest down. Raises JobFailure."""
    store = spec.store()
    try:
        texts = read_texts(spec, store, Encoder(store.local_path(spec.tokenizer_digest)))
        weights = folder.export if spec.follows_training else store.materialize(spec.files, folder.base)
    except (NotFound, DataLoss, InvalidArgument) as error:
        raise JobFailure("BAD_ARTIFACT", str(error)) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    measuring = Measuring(load_model(weights, dtype=torch.float32, device=device), texts, device)
    progress.message(f"measuring {len(texts.languages):,} texts by {spec.suite}, on {device}")
    began = time.monotonic()
    for step, (num_tokens, loss) in enumerate(measuring.steps(), 1):
        folder.validating.touch()  # for whoever watches for hanging
        if spec.follows_training:  # whose steps are those of training
            continue
        done = step == len(measuring.batches)
        per_second = num_tokens / (time.monotonic() - began)
        progress.step(
            Progress(
                step=step,
                total_steps=len(measuring.batches),
                loss=loss,
                learning_rate=0.0,
                grad_norm=0.0,
                tokens_per_second=per_second,
                tokens_seen=num_tokens,
                seconds_left=(time.monotonic() - began) / step * (len(measuring.batches) - step),
                time=time.time(),
                validation=in_languages(spec.suite, measuring.documents()) if done else (),
            )
        )
    documents = measuring.documents()
    progress.message(_told(in_languages(spec.suite, documents)))
    progress.flush()
    digest = store.write_bytes(json.dumps(documents, ensure_ascii=False).encode())
    write_whole(folder.measured(spec.fencing_token), digest)


def in_languages(suite: str, documents: dict[str, list[tuple[float, int]]]) -> tuple[ValidationLoss, ...]:
    """Bits per byte of each language's texts together."""
    sums = {language: np.sum(pairs, axis=0) for language, pairs in sorted(documents.items())}
    return tuple(
        ValidationLoss(
            dataset=suite, language=language, bits_per_byte=float(bits / num_bytes), num_bytes=int(num_bytes)
        )
        for language, (bits, num_bytes) in sums.items()
    )


def _told(losses: Sequence[ValidationLoss]) -> str:
    figures = ", ".join(f"{loss.language or 'no language'} {loss.bits_per_byte:.4f}" for loss in losses)
    return f"bits per byte by {losses[0].dataset}: {figures}"


def main(job_folder: str) -> None:
    folder = JobFolder(Path(job_folder))
    spec = EvaluationSpec.load(folder.evaluation)
    end_with_lease(folder.lease, spec.fencing_token)
    with recorded(folder.failure(spec.fencing_token)):
        measure(spec, folder, ProgressWriter(folder.progress))


if __name__ == "__main__":
    main(sys.argv[1])
