"""The `anthesis` command against a real registry, as a program in a pipe."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anthesis import Settings
from anthesis.artifacts import digest_file
from anthesis.channel import open_channel
from anthesis.v1 import job_pb2, registry_pb2
from anthesis.v1.job_pb2_grpc import JobServiceStub
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub

from services.common.artifacts import ArtifactStore
from tests.support.registry_data import TINY, text_rows, tokenizer_bytes
from tests.support.registry_server import RegistryProcess, read_keys

Run = Callable[..., subprocess.CompletedProcess[str]]
Json = Callable[..., Any]

PRESETS = {
    "560m": 559_214_592,
    "1b1": 1_065_314_304,
    "1b7": 1_722_408_960,
    "3b": 3_002_557_440,
    "7b1": 7_069_016_064,
    "176b": 176_247_271_424,
}


@pytest.mark.parametrize(("preset", "parameters"), PRESETS.items())
def test_plan_counts_parameters_with_the_platform_down(
    anthesis_json: Json, preset: str, parameters: int, tmp_path: Path
) -> None:
    down = {"ANTHESIS_REGISTRY_ADDRESS": "127.0.0.1:1", "ANTHESIS_DATA": str(tmp_path)}

    assert anthesis_json("plan", preset, **down)["parameters"] == parameters


def test_plan_reads_a_config(anthesis_json: Json, checkpoint: Path) -> None:
    assert anthesis_json("plan", checkpoint / "config.json")["parameters"] == TINY.parameters


def test_an_error_is_one_line_and_exit_code_1(anthesis: Run) -> None:
    failed = anthesis("plan", "5m", code=1)

    assert failed.stderr == "error: no BLOOM preset '5m'; choose one of 560m, 1b1, 1b7, 3b, 7b1, 176b\n"
    assert anthesis("models", "show", "nothing", code=1).stderr.startswith("error: ")
    assert "start the platform" in anthesis("models", "list", code=1, ANTHESIS_REGISTRY_ADDRESS="127.0.0.1:1").stderr


def test_a_pipe_gets_whole_lines(anthesis: Run) -> None:
    lines = anthesis("models", "list").stdout.splitlines()

    assert lines[0].split("\t") == ["NAME", "PARAMETERS", "LICENCE", "LATEST", "LANGUAGES"]
    assert "bigscience/bloom-560m\t559.2M\tbigscience-rail-1.0" in "\n".join(lines)


def test_status_names_what_does_not_answer(anthesis: Run) -> None:
    answer = json.loads(anthesis("status", "--json", code=1).stdout)

    assert answer["services"]["registry"]["status"] == "SERVING"
    assert "nothing answers at" in answer["services"]["gateway"]["status"]


def test_artifacts_go_up_and_come_down_and_are_verified(anthesis: Run, anthesis_json: Json, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"a file of mine")

    digest = anthesis("artifacts", "upload", tmp_path / "mine").stdout.strip()

    assert digest == digest_file(tmp_path / "mine")
    anthesis("artifacts", "download", digest, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"a file of mine"
    assert anthesis("artifacts", "verify", digest).stdout.splitlines()[1] == f"{digest}\tOK\t14\t-"
    missing = "sha256:" + "0" * 64
    found = json.loads(anthesis("artifacts", "verify", digest, missing, "--json", code=1).stdout)
    assert [item["state"] for item in found] == ["OK", "MISSING"]
    assert "say what to verify" in anthesis("artifacts", "verify", code=1).stderr


def test_unfinished_uploads_are_listed_and_abandoned(anthesis: Run, anthesis_json: Json, settings: Settings) -> None:
    digest = "sha256:" + "0" * 64
    with open_channel(settings.registry_address, settings.api_key) as channel:
        begin = registry_pb2.BeginUploadRequest(digest=digest, size_bytes=2000)
        upload_id = RegistryServiceStub(channel).BeginUpload(begin).upload_id

    assert f"{upload_id}\t{digest}\t0 B\t2.0 kB\t" in anthesis("artifacts", "uploads").stdout
    assert [item["id"] for item in anthesis_json("artifacts", "uploads")] == [upload_id]
    assert anthesis("artifacts", "abandon", upload_id).stdout == f"{upload_id} is abandoned\n"
    assert anthesis_json("artifacts", "uploads") == []
    assert "no unfinished upload" in anthesis("artifacts", "abandon", upload_id, code=1).stderr


def test_garbage_is_listed_and_deleted_when_it_is_asked_for(
    anthesis: Run, anthesis_json: Json, registry: RegistryProcess
) -> None:
    store = ArtifactStore(registry.platform.artifacts_url, registry.platform.data_dir / "cache")
    digest = store.write_bytes(b"needed by nothing")
    two_days_ago = time.time() - 2 * 86_400
    os.utime(store.local_path(digest), (two_days_ago, two_days_ago))

    assert f"{digest}\t17 B\t" in anthesis("artifacts", "gc").stdout
    assert anthesis_json("artifacts", "gc", "--older-than", "3d") == []
    assert store.exists(digest)
    deleted = anthesis_json("artifacts", "gc", "--delete")
    assert [(item["name"], item["deleted"]) for item in deleted] == [(digest, True)]
    assert not store.exists(digest)
    assert "'soon' is no age" in anthesis("artifacts", "gc", "--older-than", "soon", code=1).stderr


@pytest.mark.parametrize("command", ["generate", "tokenize", "score"])
def test_text_that_is_no_utf8_is_refused(environment: dict[str, str], command: str) -> None:
    args = [sys.executable, "-m", "anthesis.cli", command, "any"]

    argument = subprocess.run([*args, b"ab\xff"], env=environment, capture_output=True, text=True)
    piped = subprocess.run([*args, "-"], env=environment, input=b"ab\xff", capture_output=True)

    assert "is not UTF-8 at character 3; convert it" in argument.stderr
    assert b"standard input is not UTF-8 at character 3; convert it" in piped.stderr
    assert argument.returncode == piped.returncode == 1


def test_a_host_without_an_address_is_named(anthesis: Run) -> None:
    failed = anthesis("models", "list", code=1, ANTHESIS_REGISTRY_ADDRESS="no-such-host.invalid:1")

    assert "no-such-host.invalid:1" in failed.stderr
    assert "ANTHESIS_REGISTRY_ADDRESS" in failed.stderr


def test_a_key_with_a_line_break_is_refused(anthesis: Run) -> None:
    failed = anthesis("models", "list", code=1, ANTHESIS_API_KEY="an_1\nan_2")

    assert failed.stderr.startswith("error: the API key has a line break")
    assert failed.stderr.count("\n") == 1


def test_adapter_settings_need_a_rank(anthesis: Run) -> None:
    args = ("finetune", "submit", "--output", "lab/f", "--base", "b", "--dataset", "d", "--steps", 1)

    assert "--lora-rank" in anthesis(*args, "--lora-dropout", 0.1, code=1).stderr
    assert "--lora-rank" in anthesis(*args, "--qlora", code=1).stderr


def test_datasets_are_uploaded_listed_and_shown(anthesis: Run, anthesis_json: Json, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(text_rows(5))

    dataset = anthesis_json("datasets", "upload", "cli-rows", tmp_path / "rows.jsonl", "--format", "text")

    assert (dataset["format"], dataset["num_rows"], dataset["languages"]) == ("TEXT", 5, ["fr", "sw"])
    assert anthesis_json("datasets", "show", "cli-rows") == dataset
    assert dataset in anthesis_json("datasets", "list")
    assert "cli-rows\t1\ttext\t5" in anthesis("datasets", "list").stdout


def test_a_job_is_submitted_watched_and_cancelled(anthesis: Run, anthesis_json: Json, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(text_rows())
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_bytes())
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_hf() | {"vocab_size": 0}))
    anthesis("datasets", "upload", "cli-job", tmp_path / "rows.jsonl")
    submit = ("pretrain", "submit", "--output", "lab/cli-job", "--dataset", "cli-job", "--tokenizer")
    submit = (*submit, tmp_path / "tokenizer.json", "--config", tmp_path / "config.json")

    refused = anthesis(*submit, "--steps", 5, "-o", "learning_rate=7", code=1)
    job = anthesis_json(*submit, "--steps", 5, "-o", "learning_rate=0.01", "-o", "precision=fp32")
    cancelled = anthesis_json("jobs", "cancel", job["id"])
    watched = anthesis("jobs", "watch", job["id"], code=1).stdout.splitlines()
    again = anthesis("jobs", "cancel", job["id"], code=1)

    assert "learning_rate=7" in refused.stderr
    assert job["pretrain"]["options"]["precision"] == "fp32"
    assert cancelled["state"] == "CANCELLED"
    assert watched[0] == "PENDING"
    assert watched[-2:] == ["CANCELLED", f"{job['id']}: CANCELLED"]
    assert "CANCELLED" in again.stderr
    assert [found["id"] for found in anthesis_json("jobs", "list", "--state", "cancelled")].count(job["id"]) == 1
    assert f"{job['id']}\tpretrain\tlab/cli-job\tCANCELLED" in anthesis("jobs", "list").stdout
    events = [json.loads(line) for line in anthesis("jobs", "watch", job["id"], "--json", code=1).stdout.splitlines()]
    assert events[-1]["state"] == "CANCELLED"


def test_a_job_is_paused_resumed_followed_from_an_event_on_and_its_output_read(
    anthesis: Run, anthesis_json: Json, registry: RegistryProcess, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(text_rows())
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_bytes())
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_hf() | {"vocab_size": 0}))
    anthesis("datasets", "upload", "cli-control", tmp_path / "rows.jsonl")
    submit = ("pretrain", "submit", "--output", "lab/cli-control", "--dataset", "cli-control", "--steps", 5)
    files = ("--tokenizer", tmp_path / "tokenizer.json", "--config", tmp_path / "config.json")
    job_id = anthesis_json(*submit, *files, "--priority", "high")["id"]

    paused = anthesis_json("jobs", "pause", job_id)
    again = anthesis("jobs", "pause", job_id, code=1)
    resumed = anthesis("jobs", "resume", job_id).stdout
    with open_channel(registry.platform.registry_address, read_keys(registry.platform)["trainer"]) as channel:
        trainer = JobServiceStub(channel)
        trainer.AcquireLease(job_pb2.AcquireLeaseRequest(job_id=job_id, worker_id="w"))
        printed = job_pb2.RenewLeaseRequest(job_id=job_id, fencing_token=1, log_text="one\ntwo\n\x1b[2Jthree\n")
        trainer.RenewLease(printed)
        asked = anthesis("jobs", "pause", job_id).stdout
        listed = anthesis("jobs", "list", "--state", "running").stdout
        trainer.ReleaseLease(job_pb2.ReleaseLeaseRequest(job_id=job_id, fencing_token=1))
    anthesis("jobs", "cancel", job_id)
    events = anthesis("jobs", "watch", job_id, "--after", 3, "--json", code=1).stdout.splitlines()

    assert (paused["state"], paused["priority"]) == ("PAUSED", "HIGH")
    assert f"`anthesis jobs resume {job_id}`" in again.stderr
    assert resumed == f"{job_id}: PENDING\n"
    assert asked == f"{job_id}: RUNNING, pause requested\n"
    assert f"{job_id}\tpretrain\tlab/cli-control\tRUNNING (pause requested)\t-\t-\t1\tHIGH" in listed
    assert [json.loads(line)["sequence"] for line in events][:2] == [4, 5]
    assert json.loads(events[-1])["state"] == "CANCELLED"
    assert anthesis("jobs", "logs", job_id).stdout.splitlines() == ["one", "two", "\ufffd[2Jthree"]
    assert anthesis("jobs", "logs", job_id, "--tail", 1, "--follow").stdout == "\ufffd[2Jthree\n"


def test_webhooks_are_made_listed_and_deleted(anthesis: Run, anthesis_json: Json) -> None:
    refused = anthesis("webhooks", "create", "https://192.168.0.1/hook", code=1).stderr
    created = anthesis_json("webhooks", "create", "https://1.1.1.1/hook", "--event", "job.succeeded")
    webhook_id = created["webhook"]["id"]

    assert "192.168.0.1, which is not public" in refused
    assert created["secret"].startswith("whsec_")
    listed = anthesis("webhooks", "list").stdout
    assert f"{webhook_id}\thttps://1.1.1.1/hook\tjob.succeeded\tadmin" in listed
    assert created["secret"] not in listed
    assert anthesis_json("webhooks", "deliveries", webhook_id) == []
    assert "no delivery 'msg-0'" in anthesis("webhooks", "redeliver", "msg-0", code=1).stderr
    anthesis("webhooks", "delete", webhook_id)
    assert f"no webhook '{webhook_id}'" in anthesis("webhooks", "delete", webhook_id, code=1).stderr


def test_keys_are_made_listed_and_revoked(anthesis: Run, anthesis_json: Json) -> None:
    created = anthesis_json("keys", "create", "ada", "--role", "user")

    assert anthesis_json("models", "list", ANTHESIS_API_KEY=created["secret"])
    listed = {key["id"]: key for key in anthesis_json("keys", "list")}
    assert listed[created["key"]["id"]]["principal"] == "ada"
    assert listed[created["key"]["id"]]["role"] == "USER"
    assert created["secret"] not in anthesis("keys", "list").stdout
    anthesis("keys", "revoke", created["key"]["id"])
    assert "error: " in anthesis("models", "list", code=1, ANTHESIS_API_KEY=created["secret"]).stderr


def test_a_key_has_a_role_scopes_an_end_and_a_label(anthesis: Run, anthesis_json: Json) -> None:
    args = ("keys", "create", "bot", "--role", "trainer", "--scope", "read", "--scope", "train", "--label", "nightly")

    created = anthesis_json(*args, "--expires", "12h")
    secret = {"ANTHESIS_API_KEY": created["secret"]}

    assert (created["key"]["role"], created["key"]["scopes"]) == ("TRAINER", ["READ", "TRAIN"])
    row = next(line for line in anthesis("keys", "list").stdout.splitlines() if line.startswith(created["key"]["id"]))
    assert row.split("\t")[1:5] == ["bot", "trainer", "read,train", "nightly"]
    assert row.split("\t")[6] != "-"
    assert "needs the permission 'admin' (roles admin)" in anthesis("keys", "list", code=1, **secret).stderr
    assert "time 'soon' is not understood; write" in anthesis(*args, "--expires", "soon", code=1).stderr


def test_the_audit_log_is_shown_and_searched(anthesis: Run, anthesis_json: Json) -> None:
    key = anthesis_json("keys", "create", "curious", "--role", "viewer")
    anthesis("keys", "list", code=1, ANTHESIS_API_KEY=key["secret"])
    found = ("audit", "list", "--principal", "curious", "--since", "1h")

    [denied] = anthesis_json(*found)
    [made] = anthesis_json("audit", "list", "--resource", f"key/{key['key']['id']}")

    assert (denied["action"], denied["outcome"]) == ("RegistryService.ListApiKeys", "PERMISSION_DENIED")
    assert denied["key_id"] == key["key"]["id"]
    assert (made["principal"], made["value"], made["outcome"]) == ("admin", "curious: viewer", "OK")
    header, row = anthesis(*found).stdout.splitlines()
    assert header.split("\t") == ["TIME", "PRINCIPAL", "KEY", "ACTION", "RESOURCE", "OUTCOME", "VALUE"]
    assert row.split("\t")[1:] == ["curious", denied["key_id"], denied["action"], "-", "PERMISSION_DENIED", "-"]
    assert anthesis_json("audit", "list", "--principal", "curious", "--until", "1h") == []
    assert len(anthesis_json("audit", "list", "--limit", 2)) == 2
