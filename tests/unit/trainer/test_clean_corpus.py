"""The process of a job that cleans text; what cleaning finds: tests/integration/trainer/test_cleaning.py."""

import builtins
import json
import subprocess

import pytest

from services.common.artifacts import ArtifactStore
from services.common.settings import ROOT
from services.trainer.clean_corpus import CleanSpec, main
from services.trainer.failure import JobFailure
from services.trainer.folder import JobFolder
from services.trainer.launch import clean_command
from services.trainer.lease_file import write_lease
from tests.support.training import jsonl

SEASONS = [
    f"In the {season} the boats leave the harbour for the islands, and those who stay behind mend the nets and talk "
    f"about what the {season} will be like. When it is {weather} they are back by noon with all that they have caught."
    for season, weather in (("spring", "fine"), ("summer", "calm"))
]
MAIL = (
    "Whoever wants to come along writes to ada@example.org before noon, so that there is a place in one of the boats."
)


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    folder = JobFolder(tmp_path / "jobs" / "job")
    folder.path.mkdir(parents=True)
    write_lease(folder.lease, 1, 3600)
    return folder


def save(folder, store, *contents, **changes):
    values = {
        "job_id": "job",
        "fencing_token": 1,
        "digests": tuple(map(store.write_bytes, contents)),
        "default_language": "en",
        "near_duplicates": False,
        "foreign_lines": True,
        "personal_information": (),
        "data_dir": str(folder.path.parent.parent),
        "artifacts_url": str(store.staging.parent),
    }
    CleanSpec(**(values | changes)).save(folder.run)


def test_what_is_left_of_the_datasets_is_one_file_of_rows_beside_a_report(folder, store):
    twice = {"text": SEASONS[0], "language": "en"}
    save(folder, store, jsonl([twice, {"text": MAIL}, {"text": "a b"}]), jsonl([twice, {"text": SEASONS[1]}]))
    subprocess.run(clean_command(folder.path), cwd=ROOT, check=True, capture_output=True, timeout=120)
    (rows, digest), (report, report_digest) = json.loads(folder.result(1).read_text())
    assert (rows, report) == ("rows.jsonl", "report.json")
    left = [json.loads(line) for line in store.read_bytes(digest).splitlines()]
    texts = sorted(row["text"] for row in left)
    assert [text for text in texts if text in SEASONS] == sorted(SEASONS)
    assert len(texts) == 3
    assert not any("ada@example.org" in text for text in texts)
    assert {row["language"] for row in left} == {"en"}
    english = json.loads(store.read_bytes(report_digest))["languages"]["en"]
    assert (english["documents"], english["kept"]["documents"]) == (5, 3)


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"default_language": "xx"}, "BAD_SETTING", "default_language='xx' is not one of ROOTS'"),
        ({"personal_information": ("MOOD",)}, "BAD_SETTING", "pii: MOOD is not known; choose among"),
        ({}, "BAD_DATA", "of the rows nothing is left"),
    ],
)
def test_what_cannot_be_cleaned_fails_the_job_with_the_reason(folder, store, changes, code, reason):
    save(folder, store, jsonl([{"text": "a b"}]), **changes)
    with pytest.raises(JobFailure):
        main(str(folder.path))
    failure = JobFailure.load(folder.failure(1))
    assert failure.code == code
    assert reason in failure.message
    assert not folder.result(1).exists()


def test_without_the_extra_the_job_says_what_to_install(folder, store, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("services.trainer.cleaning"):
            raise ModuleNotFoundError("No module named 'datatrove'", name="datatrove")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    save(folder, store, jsonl([{"text": MAIL}]))
    with pytest.raises(JobFailure, match="cleaning needs datatrove, which is missing; install the extra `cleaning`"):
        main(str(folder.path))
