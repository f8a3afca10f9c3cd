"""The process of a job that imports a model, against a small hub."""

import json
import os
import subprocess

import pytest

from bloom.tensors import expected_tensors
from services.common.artifacts import ArtifactStore
from services.common.settings import ROOT
from services.trainer.failure import JobFailure
from services.trainer.folder import JobFolder
from services.trainer.import_model import ImportSpec
from services.trainer.launch import import_command
from services.trainer.lease_file import write_lease
from tests.support.hub import running_hub
from tests.support.registry_data import TINY, safetensors_bytes, tokenizer_bytes

FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    folder = JobFolder(tmp_path / "jobs" / "job")
    folder.path.mkdir(parents=True)
    write_lease(folder.lease, 1, 3600)
    ImportSpec(
        job_id="job",
        fencing_token=1,
        model="lab/tiny",
        data_dir=str(tmp_path),
        artifacts_url=str(tmp_path / "artifacts"),
    ).save(folder.run)
    return folder


@pytest.fixture
def hub(tmp_path):
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "config.json").write_text(json.dumps(TINY.to_hf()))
    (repository / "tokenizer.json").write_bytes(tokenizer_bytes())
    (repository / "LICENSE").write_text("as is")
    (repository / "optimizer.bin").write_text("not asked for")
    tensors = [(f"transformer.{name}", shape) for name, shape in expected_tensors(TINY).items()]
    parts = {FIRST: dict(tensors[:7]), SECOND: dict(tensors[7:])}
    for name, part in parts.items():
        (repository / name).write_bytes(safetensors_bytes(part))
    weight_map = {tensor: name for name, part in parts.items() for tensor in part}
    (repository / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with running_hub("lab/tiny", repository) as hub:
        yield hub


def run(folder, hub):
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder.path / "hf"), "HF_TOKEN": "hf_secret"}
    return subprocess.run(import_command(folder.path), cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def test_a_broken_import_goes_on_with_the_shard_that_is_missing(folder, hub, store):
    hub.broken = {SECOND}
    assert run(folder, hub).returncode != 0
    failure = JobFailure.load(folder.failure(1))
    assert (failure.code, failure.parameter) == ("IMPORT_FAILED", "model")
    assert failure.message.startswith("lab/tiny cannot be fetched from the Hugging Face hub (")
    hub.broken = set()
    done = run(folder, hub)
    assert done.returncode == 0, done.stderr
    found = dict(json.loads(folder.result(1).read_text()))
    names = {path.name for path in hub.folder.iterdir()} - {"optimizer.bin"}
    assert {name: store.read_bytes(digest) for name, digest in found.items()} == {
        name: (hub.folder / name).read_bytes() for name in names
    }
    assert (hub.fetched.count(FIRST), hub.fetched.count(SECOND)) == (1, 1)
    assert list(folder.hub.rglob("*.safetensors")) == []


def test_the_workers_own_token_is_not_shown_to_the_hub(folder, hub):
    assert run(folder, hub).returncode == 0
    assert hub.authorizations == {None}


def test_a_repository_without_a_tokenizer_is_refused_before_a_shard_is_fetched(folder, hub):
    (hub.folder / "tokenizer.json").unlink()
    assert run(folder, hub).returncode != 0
    assert "lab/tiny on the hub has no tokenizer.json; use --from DIR" in JobFailure.load(folder.failure(1)).message
    assert not [name for name in hub.fetched if name.endswith(".safetensors")]
