"""The process of a job that trains a tokenizer."""

import json
import subprocess

import pytest

from bloom import bpe
from services.common.artifacts import ArtifactStore
from services.common.settings import ROOT
from services.trainer.failure import JobFailure
from services.trainer.folder import JobFolder
from services.trainer.launch import tokenizer_command
from services.trainer.lease_file import write_lease
from services.trainer.train_tokenizer import TokenizerSpec, main
from tests.support.training import jsonl, multitask_rows, text_rows


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    folder = JobFolder(tmp_path / "jobs" / "job")
    folder.path.mkdir(parents=True)
    write_lease(folder.lease, 1, 3600)
    return folder


def save(folder, store, *contents):
    TokenizerSpec(
        job_id="job",
        fencing_token=1,
        digests=tuple(map(store.write_bytes, contents)),
        vocab_size=400,
        min_frequency=2,
        data_dir=str(folder.path.parent.parent),
        artifacts_url=str(store.staging.parent),
    ).save(folder.run)


def test_it_stores_the_tokenizer_of_the_datasets_texts_in_their_order(folder, store):
    save(folder, store, jsonl(text_rows(30)), jsonl(multitask_rows(10)))
    printed = subprocess.run(
        tokenizer_command(folder.path), cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    ).stdout
    texts = [row["text"] for row in text_rows(30)]
    texts += [row[name] for row in multitask_rows(10) for name in ("inputs", "targets")]
    expected = bpe.train(texts, vocab_size=400)
    ((path, digest),) = json.loads(folder.result(1).read_text())
    assert (path, store.read_bytes(digest).decode()) == ("tokenizer.json", expected.to_str())
    num_bytes = sum(len(text.encode()) for text in texts)
    assert printed == f"a vocabulary of 400 from {len(texts)} texts, {num_bytes:,} bytes\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"text": "good"}\n{"text": 3}\n', "row 2: 'text' is 3, not a string"),
        (b'{"text": ""}\n', "the datasets hold no text to learn from; add rows with text"),
    ],
)
def test_data_that_nothing_can_be_learnt_from_fail_the_job_with_the_reason(folder, store, content, reason):
    save(folder, store, content)
    with pytest.raises(JobFailure):
        main(str(folder.path))
    failure = JobFailure.load(folder.failure(1))
    assert (failure.code, failure.parameter) == ("BAD_DATA", "datasets")
    assert reason in failure.message
    assert not folder.result(1).exists()
