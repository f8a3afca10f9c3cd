"""The report, in one pass over the rows."""

from pathlib import Path
from typing import Any

from services.common.artifacts import ArtifactStore
from services.common.errors import DataLoss, InvalidArgument, NotFound
from services.trainer.config import DatasetSpec
from services.trainer.dataset_report.bad_rows import BadRows
from services.trainer.dataset_report.duplicates import Duplicates
from services.trainer.dataset_report.language_mix import LanguageMix
from services.trainer.dataset_report.leakage import NGRAM, HeldOut, ngrams
from services.trainer.dataset_report.rows import Row, read_rows
from services.trainer.dataset_report.spec import ReportSpec
from services.trainer.dataset_report.token_lengths import TokenLengths
from services.trainer.encoder import Encoder
from services.trainer.failure import JobFailure

FORMAT = 1


def make_report(spec: ReportSpec, store: ArtifactStore) -> dict[str, Any]:
    """Raises JobFailure for what cannot be read."""
    try:
        return _report(spec, store)
    except (NotFound, DataLoss, InvalidArgument) as error:
        raise JobFailure("BAD_ARTIFACT", str(error)) from error


def _report(spec: ReportSpec, store: ArtifactStore) -> dict[str, Any]:
    bad, duplicates, languages = BadRows(), Duplicates(), LanguageMix()
    lengths = TokenLengths(
        _encoder(store.local_path(spec.tokenizer_digest)),
        spec.sequence_length,
        are_examples=spec.dataset.format == "multitask",
    )
    held_out = [_held_out(store, dataset) for dataset in spec.held_out]
    num_rows = 0
    for row in read_rows(store, spec.dataset):
        num_rows = row.number
        bad.add(row)
        if not isinstance(row, Row):
            continue
        duplicates.add(row)
        languages.add(row)
        lengths.add(row)
        if held_out:
            grams = ngrams(row.text)
            for other in held_out:
                other.look_for(row.number, grams)
    return {
        "format": FORMAT,
        "dataset": spec.dataset.name,
        "digest": spec.dataset.digest,
        "rows": num_rows,
        "tokenizer_digest": spec.tokenizer_digest,
        "sequence_length": spec.sequence_length,
        "bad": bad.result(),
        "duplicates": duplicates.result(),
        "lengths": lengths.result(),
        "languages": languages.result(),
        "leakage": {"ngram": NGRAM, "held_out": [other.result() for other in held_out]},
    }


def _encoder(path: Path) -> Encoder:
    try:
        return Encoder(path)
    except Exception as error:  # tokenizers raises no other type
        raise JobFailure("BAD_TOKENIZER", f"the tokenizer cannot be read: {error}", "tokenizer_digest") from error


def _held_out(store: ArtifactStore, dataset: DatasetSpec) -> HeldOut:
    found = HeldOut(dataset.name)
    for row in read_rows(store, dataset):
        if isinstance(row, Row):
            found.add(row)
    found.close()
    return found
