"""Suites, results, comparisons and gates by the client and the `anthesis` command, against a real registry."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from anthesis import AsyncClient, Client, EvaluateSpec, Settings
from anthesis.channel import open_channel
from anthesis.errors import FailedPreconditionError, NotFoundError
from anthesis.v1 import evaluation_pb2 as pb
from anthesis.v1 import job_pb2, job_pb2_grpc, registry_pb2

from services.common.artifacts import ArtifactStore
from tests.support.registry_data import store_checkpoint, text_rows
from tests.support.registry_server import RegistryProcess, read_keys

Run = Callable[..., subprocess.CompletedProcess[str]]


class Garden:
    """A model with two versions, a suite, and a trainer's hands."""

    def __init__(self, registry: RegistryProcess, client: Client) -> None:
        platform = registry.platform
        self.store = ArtifactStore(platform.artifacts_url, platform.data_dir / "cache" / "test")
        self.client = client
        self.channel = open_channel(platform.registry_address, read_keys(platform)["trainer"])
        self.jobs = job_pb2_grpc.JobServiceStub(self.channel)
        stored = store_checkpoint(self.store)
        files = [registry_pb2.ModelFile(path=file.path, digest=file.digest) for file in stored.files]
        version = registry_pb2.ModelVersion(
            model="dahlia", licence="mit", tokenizer_digest=stored.tokenizer_digest, files=files
        )
        for _ in range(2):
            client.models.create_version(version)
        digest = client.artifacts.upload_bytes(text_rows(9)).digest
        client.datasets.create("garden-rows", digest, registry_pb2.DATASET_FORMAT_TEXT)
        client.evaluations.create_suite("garden", ["garden-rows"], sequence_length=64)

    def measure(self, version: str, **bits: list[float]) -> None:
        """A worker's answer to a job: what texts of 100 bytes took."""
        job = self.client.jobs.create(EvaluateSpec(version=version, suite="garden"))
        lease = self.jobs.AcquireLease(job_pb2.AcquireLeaseRequest(job_id=job.id, worker_id="w"))
        assert lease.base.name == version
        assert [dataset.name for dataset in lease.suite.datasets] == ["garden-rows@1"]
        pairs = {language: [(value, 100) for value in values] for language, values in bits.items()}
        documents = self.store.write_bytes(json.dumps(pairs).encode())
        self.jobs.FinishJob(
            job_pb2.FinishJobRequest(job_id=job.id, fencing_token=1, measured=job_pb2.Measured(documents=documents))
        )


@pytest.fixture(scope="module")
def garden(registry: RegistryProcess, settings: Settings) -> Iterator[Garden]:
    with Client(settings) as client:
        garden = Garden(registry, client)
        garden.measure("dahlia@1", fr=[150.0, 151.0, 149.0], sw=[200.0, 201.0, 202.0])
        garden.measure("dahlia@2", fr=[140.0, 141.0, 139.5], sw=[220.0, 222.0, 221.0])
        yield garden
        garden.channel.close()


def test_a_measured_version_is_listed_and_compared(garden: Garden, client: Client) -> None:
    suite = client.evaluations.get_suite("garden")
    assert (suite.name, suite.sequence_length, suite.kind) == ("garden@1", 64, pb.SUITE_KIND_BITS_PER_BYTE)
    assert "garden@1" in {found.name for found in client.evaluations.suites()}
    [found] = client.evaluations.list("dahlia@1", suite="garden")
    assert found.source == pb.EVALUATION_SOURCE_JOB
    assert [(result.language, result.n, result.value) for result in found.results] == [
        ("fr", 3, pytest.approx(1.5)),
        ("sw", 3, pytest.approx(2.01)),
    ]
    compared = client.evaluations.compare("dahlia@2", "dahlia@1", "garden")
    french, swahili = compared.differences
    assert french.difference < 0 < swahili.difference
    assert french.test == pb.SIGNIFICANCE_TEST_PAIRED_T
    assert french.p_value < french.p_value_holm < 0.05
    with pytest.raises(NotFoundError):
        client.evaluations.compare("dahlia@2", "dahlia@1", "tulips")


async def test_the_asynchronous_client_reaches_the_same(garden: Garden, settings: Settings) -> None:
    async with AsyncClient(settings) as client:
        metrics = [pb.Metric(name="f1", higher_is_better=True)]
        made = await client.evaluations.create_benchmark("pots", task="pots", metrics=metrics)
        result = pb.EvaluationResult(language="fr", metric="f1", value=0.5)
        recorded = await client.evaluations.record("dahlia@2", made.name, [result], reference="by hand")
        found = [evaluation async for evaluation in client.evaluations.list("dahlia@2", suite="pots")]
        assert found == [recorded]
        assert (recorded.created_by, recorded.source) == ("admin", pb.EVALUATION_SOURCE_REPORTED)


def test_the_command_shows_results_beside_published_ones_and_compares(
    garden: Garden, anthesis: Run, tmp_path: Path
) -> None:
    published = anthesis("evaluations", "list", "bigscience/bloomz", "--suite", "xnli").stdout
    line = "bigscience/bloomz\txnli@1\tar\taccuracy_median\t54.38\t-\t-\tpublished: bigscience-workshop/xmtf"
    assert line in published
    results = tmp_path / "results.json"
    results.write_text('[{"language": "en", "metric": "acc", "value": 0.61, "n": 500, "standard_error": 0.02}]')
    told = anthesis("evaluations", "record", "dahlia", "--suite", "arc_easy", "--results", results).stdout
    assert "dahlia@2\tarc_easy@1\ten\tacc\t0.61\t0.0200\t500\treported by admin" in told
    results.write_text("{}")
    refused = anthesis("evaluations", "record", "dahlia", "--suite", "arc_easy", "--results", results, code=1)
    assert "has no results: it is no list; write [{" in refused.stderr
    lines = anthesis("evaluations", "compare", "dahlia@2", "dahlia@1", "--suite", "garden").stdout.splitlines()
    assert lines[0] == "dahlia@2 against dahlia@1, by garden@1"
    assert lines[3].startswith("sw\tbits_per_byte\t2.01\t2.21\t+0.2000 worse\t")
    assert lines[3].endswith("\tpaired_t")


def test_the_command_makes_suites_and_submits_a_job(garden: Garden, anthesis: Run, anthesis_json: Any) -> None:
    made = anthesis_json("evaluations", "create-suite", "garden", "--dataset", "garden-rows", "--sequence-length", 64)
    assert made["name"] == "garden@1"  # it says the same
    job = anthesis_json("evaluations", "run", "dahlia@1", "--suite", "garden")
    assert job["evaluate"] == {"version": "dahlia@1", "suite": "garden@1"}
    listed = anthesis("jobs", "list").stdout
    assert f"{job['id']}\tevaluate\tdahlia@1 by garden@1\tPENDING" in listed


def test_the_command_makes_a_suite_of_the_harness_and_submits_a_job(
    garden: Garden, anthesis: Run, anthesis_json: Any, tmp_path: Path
) -> None:
    rows = b"".join(b'{"question": "%d?", "answer": "yes"}\n' % number for number in range(3))
    digest = garden.client.artifacts.upload_bytes(rows).digest
    garden.client.datasets.create("quiz-rows", digest, registry_pb2.DATASET_FORMAT_FIELDS)
    asked = {
        "name": "quiz",
        "dataset": "quiz-rows",
        "jinja": "{{question}} ||| {{answer}}",
        "answerChoices": "a ||| yes",
    }
    tasks = tmp_path / "tasks.json"
    tasks.write_text(json.dumps([asked]))
    options = ("--task", "xcopa_et", "--tasks", tasks, "--num-fewshot", 1, "--limit", 2, "--metric", "acc")
    made = anthesis_json("evaluations", "create-lm-eval", "quiz", *options)
    assert [task["name"] for task in made["tasks"]] == ["xcopa_et", "quiz"]
    assert (made["num_fewshot"], made["limit"]) == (1, 2)
    assert made["metrics"] == [{"name": "acc", "higher_is_better": True}]
    assert (
        anthesis("evaluations", "create-lm-eval", "quiz", *options).stdout == "quiz@1: xcopa_et, quiz (quiz-rows@1)\n"
    )
    assert "quiz@1\tlm_eval\txcopa_et, quiz (quiz-rows@1)\tacc" in anthesis("evaluations", "suites").stdout
    job = anthesis_json("evaluations", "run", "dahlia@1", "--suite", "quiz")
    assert job["evaluate"] == {"version": "dahlia@1", "suite": "quiz@1"}
    tasks.write_text('[{"yaml": "task.yaml"}]')
    refused = anthesis("evaluations", "create-lm-eval", "bad", "--tasks", tasks, code=1).stderr
    assert "has no tasks: Message type" in refused
    refused = anthesis("evaluations", "create-lm-eval", "bad", "--task", "../task.yaml", code=1).stderr
    assert "task name '../task.yaml' is not allowed" in refused


def test_a_gate_is_set_refuses_with_the_language_and_is_overridden_with_a_reason(
    garden: Garden, client: Client, anthesis: Run
) -> None:
    client.aliases.set("bed", "dahlia@1")
    told = anthesis("gates", "set", "bed", "--suite", "garden", "--max-regression", 1).stdout
    assert told == "bed moves where by garden@1 nothing gets worse by more than 1 % bits per byte (all languages)\n"
    refused = anthesis("aliases", "set", "bed", "dahlia@2", code=1).stderr
    assert "worse in sw (2.0100 -> 2.2100 bits per byte, +9.95 %)" in refused
    assert "fr" not in refused.partition("worse in")[2].partition(")")[0]
    with pytest.raises(FailedPreconditionError, match="worse in sw"):
        client.aliases.set("bed", "dahlia@2")
    anthesis("aliases", "set", "bed", "dahlia@2", "--override-gate", "--reason", "French only")
    assert "dahlia@2\tset over its gate" in anthesis("aliases", "history", "bed").stdout
    assert "bed\tgarden@1\t1\tall languages" in anthesis("gates", "list").stdout
    assert anthesis("gates", "remove", "bed").stdout == "bed has no gate any more\n"
    with pytest.raises(NotFoundError):
        client.gates.get("bed")
