"""An import through the real parts: registry, relay, Valkey, Celery worker; and a small hub."""

import json
import shutil
import tempfile
from pathlib import Path

from anthesis.v1 import job_pb2, registry_pb2

from bloom.tensors import expected_tensors
from tests.support.hub import running_hub
from tests.support.registry_data import TINY, safetensors_bytes, tokenizer_bytes
from tests.support.training_platform import TrainingPlatform, messages, processes_of


def test_a_worker_brings_a_model_from_the_hub_and_says_what_failed():
    folder = Path(tempfile.mkdtemp(prefix="an-"))
    repository = folder / "repository"
    repository.mkdir()
    (repository / "config.json").write_text(json.dumps(TINY.to_hf()))
    (repository / "tokenizer.json").write_bytes(tokenizer_bytes())
    tensors = {f"transformer.{name}": shape for name, shape in expected_tensors(TINY).items()}
    (repository / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    with (
        running_hub("lab/tiny", repository) as hub,
        TrainingPlatform(folder / "data", HF_ENDPOINT=hub.url, HF_HUB_DISABLE_XET="1") as platform,
    ):
        there = platform.submit(job_pb2.ImportModelSpec(model="lab/tiny", licence="mit"), deploy_alias="tiny")
        gone = platform.submit(job_pb2.ImportModelSpec(model="lab/gone", licence="mit"))
        job = platform.wait_until_ended(there)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
        request = registry_pb2.ResolveModelRequest(name="tiny")
        version = platform.registry.ResolveModel(request).version
        assert (version.name, version.source) == (job.model_version, "import")
        assert not platform.folder(there).hub.exists()
        assert processes_of(there) == []

        failed = platform.wait_until_ended(gone)
        assert (failed.state, failed.error.code) == (job_pb2.JOB_STATE_FAILED, "IMPORT_FAILED")
        assert "lab/gone cannot be fetched from the Hugging Face hub" in failed.error.message
        assert messages(platform.events(gone))
    shutil.rmtree(folder, ignore_errors=True)
