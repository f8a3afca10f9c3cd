"""`anthesis tokenizers` and TrainTokenizerSpec against a real registry."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anthesis import Client
from anthesis.channel import open_channel
from anthesis.v1 import job_pb2
from anthesis.v1.job_pb2_grpc import JobServiceStub
from anthesis.v1.registry_pb2 import ModelFile

from tests.support.registry_data import text_rows, tokenizer_bytes
from tests.support.registry_server import RegistryProcess, read_keys

Run = Callable[..., subprocess.CompletedProcess[str]]
Json = Callable[..., Any]


def test_a_tokenizer_is_asked_for_and_its_digest_is_what_the_job_names(
    client: Client, anthesis: Run, anthesis_json: Json, registry: RegistryProcess, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(text_rows())
    anthesis("datasets", "upload", "cli-words", tmp_path / "rows.jsonl")
    train = ("tokenizers", "train", "--dataset", "cli-words", "--vocab-size")

    refused = anthesis(*train, 100, code=1).stderr
    job = anthesis_json(*train, 600, "--priority", "high")
    waiting = anthesis("jobs", "list", "--state", "pending").stdout
    digest = client.artifacts.upload_bytes(tokenizer_bytes()).digest
    with open_channel(registry.platform.registry_address, read_keys(registry.platform)["trainer"]) as channel:
        trainer = JobServiceStub(channel)
        trainer.AcquireLease(job_pb2.AcquireLeaseRequest(job_id=job["id"], worker_id="t"))
        files = job_pb2.ModelFiles(files=[ModelFile(path="tokenizer.json", digest=digest)])
        trainer.FinishJob(job_pb2.FinishJobRequest(job_id=job["id"], fencing_token=1, succeeded=files))
    watched = anthesis("jobs", "watch", job["id"]).stdout.splitlines()

    assert refused == "error: vocab_size=100 is out of range; choose a value in [512, 1000000]\n"
    assert job["train_tokenizer"] == {"datasets": ["cli-words@1"], "vocab_size": 600, "min_frequency": 0}
    assert (job["state"], job["priority"]) == ("PENDING", "HIGH")
    assert f"{job['id']}\ttrain_tokenizer\ta tokenizer of cli-words@1\tPENDING" in waiting
    assert watched[-1] == f"{job['id']} made the tokenizer {digest}"
    assert client.jobs.get(job["id"]).tokenizer_digest == digest
