"""What a report finds: whatever was planted in the rows, by row, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.artifacts import ArtifactStore
from services.common.settings import ROOT
from services.trainer.config import DatasetSpec
from services.trainer.dataset_report import duplicates, language_mix
from services.trainer.dataset_report.leakage import NGRAM, HeldOut, ngrams
from services.trainer.dataset_report.report import make_report
from services.trainer.dataset_report.rows import Row
from services.trainer.dataset_report.spec import ReportSpec
from services.trainer.encoder import Encoder
from services.trainer.failure import JobFailure
from services.trainer.folder import JobFolder
from services.trainer.lease_file import write_lease
from tests.support.tokenizers import TEXTS, small_tokenizer_json
from tests.support.training import jsonl

ENGLISH, FRENCH, SPANISH = TEXTS[:3]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")


def dataset(store: ArtifactStore, rows: list[dict[str, Any]] | bytes, form: Any = "text", name: str = "rows@1"):
    content = rows if isinstance(rows, bytes) else jsonl(rows)
    return DatasetSpec(name=name, format=form, digest=store.write_bytes(content))


def spec_of(store: ArtifactStore, rows: Any, form: str = "text", **changes: Any) -> ReportSpec:
    values = {
        "job_id": "job",
        "fencing_token": 1,
        "dataset": dataset(store, rows, form),
        "tokenizer_digest": store.write_bytes(small_tokenizer_json().encode()),
        "sequence_length": 16,
        "data_dir": str(store.staging.parent.parent),
        "artifacts_url": str(store.staging.parent),
    }
    return ReportSpec(**(values | changes))


def report(store: ArtifactStore, rows: Any, form: str = "text", **changes: Any) -> dict[str, Any]:
    return make_report(spec_of(store, rows, form, **changes), store)


def test_bad_rows_are_named_with_field_reason_and_beginning(store: ArtifactStore):
    lines = [
        b'{"text": "good"}',
        b'{"text": " \\n "}',
        b'{"text": "w\\ufffdrld", "context": "\\ufffd"}',
        b'{"text": "bell\\u0007"}',
        b"not json",
        b'{"text": "\\ufffd"}',
    ]
    found = report(store, b"\n".join(lines))
    reasons = {item["reason"]: item for item in found["bad"]["reasons"]}
    assert (found["rows"], found["bad"]["rows"]) == (6, 5)
    assert {reason.partition(" (")[0]: [row["row"] for row in item["first"]] for reason, item in reasons.items()} == {
        "the mark of a wrong decoding, U+FFFD": [3, 6],
        "white space only": [2],
        "control characters": [4],
        "not JSON": [5],
    }
    assert reasons["control characters"]["first"] == [{"row": 4, "field": "text", "text": "bell\x07"}]


def test_of_each_reason_the_first_rows_are_named_and_all_are_counted(store: ArtifactStore):
    (reason,) = report(store, [{"text": " "}] * 40)["bad"]["reasons"]
    assert (reason["rows"], [row["row"] for row in reason["first"]]) == (40, [1, 2, 3, 4, 5])


def test_exact_and_near_duplicates_are_told_apart(store: ArtifactStore):
    near = ENGLISH.replace(".", "!", 1)
    rows = [{"text": text} for text in (ENGLISH, FRENCH, ENGLISH, near, SPANISH, FRENCH)]
    found = report(store, rows)["duplicates"]
    assert found["exact"] == {"rows": 2, "first": [{"row": 3, "like_row": 1}, {"row": 6, "like_row": 2}]}
    assert found["near"] == {"rows": 1, "compared_rows": 4, "first": [{"row": 4, "like_row": 1}]}


def test_the_same_targets_after_other_inputs_are_no_duplicates(store: ArtifactStore):
    rows = [{"inputs": text, "targets": " yes"} for text in (ENGLISH, FRENCH)] + [{"inputs": "a", "targets": "b"}] * 2
    assert report(store, rows, "multitask")["duplicates"]["exact"]["rows"] == 1


def test_rows_beyond_the_most_are_not_compared_and_the_report_says_so(store: ArtifactStore, monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_COMPARED", 2)
    rows = [{"text": text} for text in (ENGLISH, FRENCH, ENGLISH + "!")]
    assert report(store, rows)["duplicates"]["near"] == {"rows": 0, "compared_rows": 2, "first": []}


def test_lengths_are_the_tokenizers_with_the_end_of_each_row(store: ArtifactStore):
    rows = [{"text": text} for text in TEXTS]
    found = report(store, rows)["lengths"]
    path = store.local_path(store.write_bytes(small_tokenizer_json().encode()))
    lengths = sorted(len(ids) + 1 for ids in Encoder(path).encode(list(TEXTS)))
    longer = [length for length in lengths if length > 16]
    assert (found["tokens"], found["most"], found["mean"]) == (sum(lengths), lengths[-1], sum(lengths) / len(lengths))
    assert found["quantiles"]["0.5"] == lengths[4]
    assert found["longer_than_sequence"] == {
        "rows": len(longer),
        "share": len(longer) / len(lengths),
        "tokens_beyond": sum(longer) - 16 * len(longer),
    }
    assert sum(step["rows"] for step in found["histogram"]) == len(rows)
    for step in found["histogram"]:
        assert step["rows"] == sum(step["up_to"] // 2 < length <= step["up_to"] for length in lengths)


def test_a_conversation_is_as_long_as_its_text_in_training(store: ArtifactStore):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello world"}]
    found = report(store, [{"messages": talk}], "multitask")
    path = store.local_path(store.write_bytes(small_tokenizer_json().encode()))
    texts = ["User: Hi\n", "Assistant:", " Hello world", "\n"]
    assert found["lengths"]["tokens"] <= sum(map(len, Encoder(path).encode(texts))) + 1
    assert found["lengths"]["tokens"] > sum(map(len, Encoder(path).encode(["Hi", "Hello world"]))) + 1


def test_languages_are_identified_and_compared_with_what_rows_declare(store: ArtifactStore):
    rows = [
        {"text": ENGLISH * 3, "language": "en"},
        {"text": FRENCH * 3, "language": "en"},
        {"text": FRENCH * 3},
        {"text": TEXTS[8], "language": "Python"},
        {"text": "123"},
    ]
    found = report(store, rows)["languages"]
    assert found["declared"] == {"en": 2, "": 2, "Python": 1}
    assert found["identified_rows"] == 5
    assert found["identified"] == {"fr": 2, "en": 1, "Python": 1, "undetermined": 1}
    assert found["not_as_declared"] == {"rows": 1, "first": [{"row": 2, "declared": "en", "identified": "fr"}]}


def test_of_many_rows_a_sample_is_identified_that_every_row_may_be_in(monkeypatch):
    monkeypatch.setattr(language_mix, "MAX_IDENTIFIED", 20)
    mix = language_mix.LanguageMix()
    for number in range(1, 2001):
        mix.add(Row(number, {}, (("text", str(number)),)))
    numbers = [number for number, _, _ in mix._sample]
    assert (len(set(numbers)), mix.result()["identified_rows"]) == (20, 20)
    assert min(numbers) < 700 < 1300 < max(numbers)


def test_rows_that_share_text_with_what_is_held_out_are_found(store: ArtifactStore):
    held = [{"text": ENGLISH}, {"text": "Short answer"}, {"text": TEXTS[3]}, {"text": "of its own"}]
    rows = [
        {"text": f"As they say, {' '.join(ENGLISH.split()[1:15])} … and so on"},
        {"text": FRENCH},
        {"text": "short ANSWER!"},
        {"text": f"引用：{TEXTS[3][2:20]}"},
        {"text": " ".join(ENGLISH.split()[:12])},  # one word less than counts
    ]
    other = dataset(store, held, name="held@2")
    found = report(store, rows, held_out=(other, dataset(store, [{"text": SPANISH}], name="free@1")))["leakage"]
    assert found["ngram"] == 13
    assert found["held_out"] == [
        {
            "dataset": "held@2",
            "rows": 3,
            "held_out_rows": 3,
            "held_out_share": 0.75,
            "first": [
                {"row": 1, "held_out_row": 1},
                {"row": 3, "held_out_row": 2},
                {"row": 4, "held_out_row": 3},
            ],
        },
        {"dataset": "free@1", "rows": 0, "held_out_rows": 0, "held_out_share": 0.0, "first": []},
    ]


WORDS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40)


def naive_overlap(first: list[str], second: list[str]) -> bool:
    def runs(words: list[str]) -> set[tuple[str, ...]]:
        size = min(NGRAM, len(words))
        return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}

    return bool(runs(first) & runs(second))


@settings(deadline=None)
@given(WORDS, st.lists(WORDS, min_size=1, max_size=4), st.integers(0, 40))
def test_overlap_is_what_comparing_all_runs_of_words_finds(row: list[str], held: list[list[str]], copied: int):
    row = row + held[0][:copied]
    found = HeldOut("held")
    for number, words in enumerate(held, 1):
        found.add(Row(number, {}, (("text", " ".join(words)),)))
    found.close()
    found.look_for(1, ngrams(" ".join(row)))
    overlapping = [words for words in held if naive_overlap(row, words)]
    assert (found.result()["rows"], found.result()["held_out_rows"]) == (bool(overlapping), len(overlapping))


def test_fields_are_looked_at_as_they_are(store: ArtifactStore):
    found = report(store, [{"premise": ENGLISH, "label": 0, "language": "en"}, {"label": 1}], "fields")
    assert found["languages"]["declared"] == {"en": 1, "": 1}
    assert found["bad"]["reasons"][0]["reason"] == "no text"
    assert found["lengths"]["most"] > 16


def test_what_cannot_be_read_is_a_failure_with_its_code(store: ArtifactStore):
    with pytest.raises(JobFailure) as refused:
        report(store, [{"text": "a"}], tokenizer_digest=store.write_bytes(b"{}"))
    assert (refused.value.code, refused.value.parameter) == ("BAD_TOKENIZER", "tokenizer_digest")
    with pytest.raises(JobFailure) as refused:
        make_report(
            spec_of(store, [], dataset=DatasetSpec(name="a", format="text", digest="sha256:" + "0" * 64)), store
        )
    assert refused.value.code == "BAD_ARTIFACT"


def test_the_process_leaves_the_report_in_the_store_and_its_digest_in_the_jobs_folder(store, tmp_path: Path):
    spec = spec_of(store, [{"text": ENGLISH}], data_dir=str(tmp_path), artifacts_url=str(tmp_path / "artifacts"))
    folder = JobFolder(tmp_path / "jobs" / "job")
    folder.path.mkdir(parents=True)
    spec.save(folder.run)
    assert ReportSpec.load(folder.run) == spec
    write_lease(folder.lease, 1, 3600)
    command = [sys.executable, "-m", "services.trainer.dataset_report", str(folder.path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    ((name, digest),) = json.loads(folder.result(1).read_text())
    assert (name, json.loads(store.read_bytes(digest))) == ("report.json", make_report(spec, store))


def test_the_report_needs_neither_torch_nor_datatrove():
    """It runs in the trainer's image, which has no datatrove, and starts at once."""
    code = "import sys, services.trainer.dataset_report.report; print({'torch', 'datatrove'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "set()\n"
