"""`anthesis datasets` and `client.datasets` against a real registry."""

import gzip
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anthesis import AsyncClient, Client, Settings
from anthesis.channel import open_channel
from anthesis.errors import InvalidArgumentError, NotFoundError
from anthesis.row_files.limits import Limits
from anthesis.v1 import job_pb2
from anthesis.v1.job_pb2_grpc import JobServiceStub
from anthesis.v1.registry_pb2 import DATASET_FORMAT_TEXT, ModelFile

from services.common.artifacts import ArtifactStore
from services.trainer.config import DatasetSpec
from services.trainer.dataset_report.report import make_report
from services.trainer.dataset_report.spec import ReportSpec
from tests.support.registry_data import text_rows, tokenizer_bytes
from tests.support.registry_server import RegistryProcess, read_keys
from tests.support.tokenizers import small_tokenizer_json

Run = Callable[..., subprocess.CompletedProcess[str]]
Json = Callable[..., Any]


def test_datasets_have_versions_and_come_from_tables(anthesis: Run, anthesis_json: Json, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(text_rows(5))
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(b'body,language\n"Un, deux",fr\n\x1b[2Jtrois,fr\n'))
    upload = ("datasets", "upload", "cli-table")

    anthesis(*upload, tmp_path / "rows.jsonl")
    refused = anthesis(*upload, tmp_path / "rows.csv.gz", code=1).stderr
    second = anthesis_json(*upload, tmp_path / "rows.csv.gz", "--column", "text=body")
    versions = anthesis_json("datasets", "versions", "cli-table")
    preview = anthesis("datasets", "preview", "cli-table").stdout

    assert "rows.csv.gz has no column 'text', which TEXT rows need; it has 'body', 'language'" in refused
    assert (second["version"], second["num_rows"], second["languages"]) == (2, 2, ["fr"])
    assert [row["num_rows"] for row in versions] == [2, 5]
    assert anthesis_json("datasets", "show", "cli-table@1") == versions[1]
    assert "cli-table@2: 2 of 2 rows" in preview
    assert "row 1\n  text: Un, deux\n  language: fr" in preview
    assert r"text: \x1b[2Jtrois" in preview
    drawn = [anthesis("datasets", "preview", "cli-table@1", "--rows", 2, "--seed", 3).stdout for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert "is not FIELD=COLUMN" in anthesis(*upload, tmp_path / "rows.csv.gz", "--column", "text", code=1).stderr


def test_a_report_on_a_dataset_is_asked_for_and_printed(
    client: Client, anthesis: Run, anthesis_json: Json, registry: RegistryProcess, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(text_rows(5))
    anthesis("datasets", "upload", "cli-report", tmp_path / "rows.jsonl")
    digest = client.artifacts.upload_bytes(tokenizer_bytes()).digest
    missing = anthesis("datasets", "report", "cli-report", code=1).stderr

    job = anthesis_json("datasets", "validate", "cli-report", "--tokenizer", digest, "--sequence-length", 64)
    listed = anthesis("jobs", "list").stdout
    store = ArtifactStore(registry.platform.artifacts_url, tmp_path / "cache")
    spec = ReportSpec(
        job_id=job["id"],
        fencing_token=1,
        dataset=DatasetSpec(name="cli-report@1", format="text", digest=client.datasets.get("cli-report").digest),
        tokenizer_digest=store.write_bytes(small_tokenizer_json().encode()),
        sequence_length=64,
        data_dir=str(tmp_path),
        artifacts_url=registry.platform.artifacts_url,
    )
    report = store.write_bytes(json.dumps(make_report(spec, store)).encode())
    with open_channel(registry.platform.registry_address, read_keys(registry.platform)["trainer"]) as channel:
        trainer = JobServiceStub(channel)
        trainer.AcquireLease(job_pb2.AcquireLeaseRequest(job_id=job["id"], worker_id="t"))
        files = job_pb2.ModelFiles(files=[ModelFile(path="report.json", digest=report)])
        trainer.FinishJob(job_pb2.FinishJobRequest(job_id=job["id"], fencing_token=1, succeeded=files))
    printed = anthesis("datasets", "report", "cli-report").stdout

    assert "no report on cli-report@1 yet; have one made: `anthesis datasets validate cli-report@1" in missing
    assert job["validate_dataset"]["dataset"] == "cli-report@1"
    assert "validate_dataset\treport on cli-report@1\tPENDING" in listed
    assert anthesis_json("datasets", "report", "cli-report")["rows"] == 5
    assert printed.startswith("cli-report@1: 5 rows\n\nbad rows: none\nduplicates: 0 the same as an earlier row; ")
    assert "tokens: " in printed
    assert "languages: " in printed


def test_a_dataset_is_cleaned_into_another(
    client: Client, anthesis: Run, anthesis_json: Json, registry: RegistryProcess, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(text_rows(5))
    anthesis("datasets", "upload", "cli-raw", tmp_path / "rows.jsonl")

    job = anthesis_json("datasets", "clean", "cli-raw", "--output", "cli-fit", "--redact", "EMAIL")
    waiting = anthesis("jobs", "list", "--state", "pending").stdout
    rows = client.artifacts.upload_bytes(text_rows(4)).digest
    report = client.artifacts.upload_bytes(b"{}").digest
    with open_channel(registry.platform.registry_address, read_keys(registry.platform)["trainer"]) as channel:
        trainer = JobServiceStub(channel)
        trainer.AcquireLease(job_pb2.AcquireLeaseRequest(job_id=job["id"], worker_id="t"))
        made = [ModelFile(path="rows.jsonl", digest=rows), ModelFile(path="report.json", digest=report)]
        files = job_pb2.ModelFiles(files=made)
        trainer.FinishJob(job_pb2.FinishJobRequest(job_id=job["id"], fencing_token=1, succeeded=files))
    watched = anthesis("jobs", "watch", job["id"]).stdout.splitlines()

    assert (job["clean_corpus"]["datasets"], job["clean_corpus"]["personal_information"]) == (["cli-raw@1"], ["EMAIL"])
    assert f"{job['id']}\tclean_corpus\tdataset cli-fit\tPENDING" in waiting
    told = f"what became of the rows: `anthesis artifacts download {report} report.json`"
    assert watched[-1] == f"{job['id']} made cli-fit@1; {told}"
    assert client.datasets.get("cli-fit").num_rows == 4


def test_a_bomb_is_refused_and_nothing_is_sent(client: Client, tmp_path: Path) -> None:
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 100_000))

    with pytest.raises(InvalidArgumentError, match=r"the rows of bomb\.jsonl\.gz are longer than 2 times its"):
        client.datasets.upload(
            "bomb", tmp_path / "bomb.jsonl.gz", DATASET_FORMAT_TEXT, limits=Limits(max_ratio=2, min_bytes=1000)
        )
    assert "bomb" not in {dataset.name for dataset in client.datasets.list()}


def test_a_bad_cell_is_named_by_its_field_and_its_column(client: Client, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"body,language\na,fr\n,fr\n")

    with pytest.raises(
        InvalidArgumentError, match=r"row 2: \"text\" is empty\n\('text' is column 'body' of rows\.csv\)"
    ):
        client.datasets.upload("cells", tmp_path / "rows.csv", DATASET_FORMAT_TEXT, columns={"text": "body"})


async def test_the_asynchronous_client_does_the_same(settings: Settings, tmp_path: Path) -> None:
    async with AsyncClient(settings) as client:
        for count in (1, 2):
            (tmp_path / "rows.jsonl").write_bytes(text_rows(count))
            await client.datasets.upload("aio-rows", tmp_path / "rows.jsonl", DATASET_FORMAT_TEXT)
        assert [dataset.version for dataset in await client.datasets.versions("aio-rows")] == [2, 1]
        assert len((await client.datasets.preview("aio-rows@1", num_rows=5, seed=1)).rows) == 1
        with pytest.raises(NotFoundError, match="no report on aio-rows@2 yet"):
            await client.datasets.report("aio-rows")
