"""What each text of a suite takes: what transformers says of it, alone."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import BloomForCausalLM

from services.common.artifacts import ArtifactStore
from services.trainer import evaluate
from services.trainer.config import DatasetSpec
from services.trainer.evaluate import measure
from services.trainer.evaluation import EvaluationSpec
from services.trainer.failure import JobFailure
from services.trainer.folder import JobFolder
from services.trainer.progress import ProgressReader, ProgressWriter
from tests.support.bits_per_byte import bits_per_byte
from tests.support.bloom_models import make_hf_folder
from tests.support.tokenizers import TEXTS, small_tokenizer_json
from tests.support.training import jsonl

WINDOW = 32
LONG = " ".join(TEXTS[:3])  # some windows long
ROWS: list[dict[str, Any]] = [
    {"text": TEXTS[0], "language": "en"},
    {"text": TEXTS[1], "language": "fr"},
    {"text": LONG, "language": "en"},
    {"text": "Hello", "language": "fr"},
    {"text": "", "language": "fr"},
    {"text": TEXTS[3]},
]


def spec_of(data_dir: Path, rows: list[dict[str, Any]] = ROWS, form: Any = "text", **changes: Any) -> EvaluationSpec:
    folder = make_hf_folder(data_dir / "model", vocab=512)
    store = ArtifactStore(str(data_dir / "artifacts"), data_dir / "cache")
    spec = EvaluationSpec(
        job_id="job",
        fencing_token=1,
        suite="held-out@1",
        datasets=(DatasetSpec(name="held-out", format=form, digest=store.write_bytes(jsonl(rows))),),
        sequence_length=WINDOW,
        tokenizer_digest=store.write_bytes(small_tokenizer_json().encode()),
        files=tuple((path.name, store.write_file(path)) for path in sorted(folder.iterdir())),
        data_dir=str(data_dir),
        artifacts_url=str(data_dir / "artifacts"),
    )
    return dataclasses.replace(spec, **changes)


def measured(spec: EvaluationSpec) -> dict[str, list[list[float]]]:
    folder = job_folder(spec)
    measure(spec, folder, ProgressWriter(folder.progress))
    store = ArtifactStore(spec.artifacts_url, folder.path / "cache")
    return dict(json.loads(store.read_bytes(folder.measured(1).read_text())))


def job_folder(spec: EvaluationSpec) -> JobFolder:
    folder = JobFolder(Path(spec.data_dir) / "jobs" / spec.job_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder


def by_transformers(spec: EvaluationSpec, rows: list[dict[str, Any]]) -> list[tuple[float, int]]:
    """(bits, bytes) of each row, alone."""
    model = BloomForCausalLM.from_pretrained(Path(spec.data_dir) / "model")
    tokenizer = Tokenizer.from_str(small_tokenizer_json())
    found = [bits_per_byte(model, tokenizer, [row], WINDOW)[row.get("language", "")] for row in rows]
    return [(rate * num_bytes, num_bytes) for rate, num_bytes in found]


def greatest_difference(spec: EvaluationSpec) -> float:
    found = measured(spec)
    apart = 0.0
    for language, pairs in found.items():
        rows = [row for row in ROWS if row.get("language", "") == language and row["text"]]
        for (bits, num_bytes), (expected, size) in zip(pairs, by_transformers(spec, rows), strict=True):
            assert num_bytes == size
            apart = max(apart, abs(bits / expected - 1))
    assert list(found) == ["en", "fr", ""]
    return apart


@pytest.mark.parametrize("tokens_together", [1, 4096])
def test_each_text_takes_the_bits_that_transformers_says_whatever_is_computed_beside_it(
    tmp_path, monkeypatch, tokens_together
):
    monkeypatch.setattr(evaluate, "TOKENS_TOGETHER", tokens_together)
    assert greatest_difference(spec_of(tmp_path)) < 1e-5


@pytest.mark.parametrize("mistake", ["slopes", "padding is scored", "the end of a long text is left out"])
def test_a_planted_mistake_is_noticed(tmp_path, monkeypatch, mistake):
    if mistake == "slopes":
        monkeypatch.setattr(evaluate, "slopes", lambda n_head: (0.0,) * n_head)
    elif mistake == "padding is scored":
        monkeypatch.setattr(evaluate, "_padded", padded_with_what_is_scored)
    else:
        cut = evaluate.cut
        monkeypatch.setattr(evaluate, "cut", lambda context, targets, length: cut(context, targets[:length], length))
    assert greatest_difference(spec_of(tmp_path)) > 1e-3


def padded_with_what_is_scored(rows: list[list[int]], length: int, fill: int) -> torch.Tensor:
    return torch.tensor([[*row, *[abs(fill)] * (length - len(row))] for row in rows])


def test_of_multitask_rows_the_targets_are_scored_behind_their_inputs(tmp_path):
    rows = [{"inputs": "one two", "targets": " three", "language": "en"}] * 2
    found = measured(spec_of(tmp_path, rows, "multitask"))
    assert [num_bytes for _, num_bytes in found["en"]] == [len(" three")] * 2
    alone = measured(spec_of(tmp_path, [{"text": " three", "language": "en"}], job_id="alone"))
    assert abs(found["en"][0][0] - alone["en"][0][0]) > 1e-3


def test_the_job_tells_how_far_it_is_and_at_the_end_what_it_found(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "TOKENS_TOGETHER", 1)
    spec = spec_of(tmp_path)
    found = measured(spec)
    steps, messages = ProgressReader(job_folder(spec).progress).read()
    assert [step.step for step in steps] == list(range(1, steps[-1].total_steps + 1))
    assert [bool(step.validation) for step in steps] == [False] * (len(steps) - 1) + [True]
    for loss in steps[-1].validation:
        bits, num_bytes = (sum(column) for column in zip(*found[loss.language], strict=True))
        assert (loss.dataset, loss.num_bytes) == ("held-out@1", num_bytes)
        assert math.isclose(loss.bits_per_byte, bits / num_bytes)
    assert messages[0] == "measuring 5 texts by held-out@1, on cpu"
    assert messages[1].startswith("bits per byte by held-out@1: no language ")


def test_what_a_job_has_trained_is_measured_where_it_lies_without_steps_of_its_own(tmp_path):
    spec = spec_of(tmp_path)
    expected = measured(spec)
    behind = dataclasses.replace(spec, files=(), job_id="trained")
    folder = job_folder(behind)
    folder.export.symlink_to(tmp_path / "model")
    assert measured(behind) == expected
    steps, messages = ProgressReader(folder.progress).read()
    assert (steps, len(messages)) == ([], 2)


def test_a_row_that_is_none_is_refused_with_its_number(tmp_path):
    with pytest.raises(JobFailure, match=r"'held-out', row 2 has no string 'text'"):
        measured(spec_of(tmp_path, [{"text": "a"}, {"texts": "b"}]))


def test_a_suite_without_a_token_is_refused(tmp_path):
    with pytest.raises(JobFailure, match="suite held-out@1 holds no token to score"):
        measured(spec_of(tmp_path, [{"text": ""}]))


def test_a_spec_is_what_was_saved(tmp_path):
    spec = spec_of(tmp_path)
    spec.save(tmp_path / "evaluation.json")
    assert EvaluationSpec.load(tmp_path / "evaluation.json") == spec
