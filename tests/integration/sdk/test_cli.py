"""The `anthesis` command against a real registry, as a program in a pipe."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from anthesis import Client, Settings
from anthesis.artifacts import digest_file
from anthesis.channel import open_channel
from anthesis.errors import NotFoundError
from anthesis.v1 import job_pb2, registry_pb2
from anthesis.v1.job_pb2_grpc import JobServiceStub
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub

from bloom.quantize import quantize_checkpoint
from bloom.tensors import expected_tensors
from services.common.artifacts import ArtifactStore
from tests.support.hub import Hub, running_hub
from tests.support.registry_data import TINY, safetensors_bytes, text_rows, tokenizer_bytes
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


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder as transformers writes it: two shards, an index, a tokenizer."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY.to_hf()))
    (folder / "tokenizer.json").write_bytes(tokenizer_bytes())
    tensors = [(f"transformer.{name}", shape) for name, shape in expected_tensors(TINY).items()]
    weight_map = {}
    for number, part in enumerate((tensors[:7], tensors[7:]), start=1):
        name = f"model-{number:05}-of-00002.safetensors"
        (folder / name).write_bytes(safetensors_bytes(dict(part)))
        weight_map |= dict.fromkeys(dict(part), name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


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


def test_a_checkpoint_is_imported_once(anthesis: Run, anthesis_json: Json, checkpoint: Path) -> None:
    args = ("models", "import", "lab/tiny", "--from", checkpoint, "--licence", "apache-2.0", "--alias", "tiny")

    version = anthesis_json(*args)
    again = anthesis_json(*args)

    assert version["name"] == again["name"] == "lab/tiny@1"
    assert version["parameters"] == TINY.parameters
    aliases = {alias["name"]: alias["version"] for alias in anthesis_json("aliases", "list")}
    assert len([file for file in version["files"] if not file["carried"]]) == 4
    assert aliases["tiny"] == "lab/tiny@1"
    shown = anthesis_json("models", "show", "tiny")
    assert shown["model"]["name"] == "lab/tiny"
    assert [found["name"] for found in shown["versions"]] == ["lab/tiny@1"]
    assert "lab/tiny@1" in anthesis("models", "show", "lab/tiny").stdout


def test_an_alias_is_moved_asked_about_rolled_back_and_deleted(
    anthesis: Run, anthesis_json: Json, checkpoint: Path
) -> None:
    for model in ("lab/early", "lab/late"):
        anthesis("models", "import", model, "--from", checkpoint, "--licence", "mit")
    anthesis("aliases", "set", "live", "lab/early", "--if-generation", 0)
    set_time = anthesis_json("aliases", "resolve", "live")["change"]["time"]

    moved = anthesis("aliases", "set", "live", "lab/late", "--reason", "fewer errors").stdout
    beaten = anthesis("aliases", "set", "live", "lab/early", "--if-generation", 1, code=1).stderr

    assert moved == "live -> lab/late@1 (generation 2)\n"
    assert "'live' is at generation 2 (lab/late@1), not at if_generation=1" in beaten
    assert anthesis("aliases", "resolve", "live").stdout == "lab/late@1\n"
    assert anthesis("aliases", "resolve", "live", "--at", set_time).stdout == "lab/early@1\n"
    assert "--at 'noon' is no time" in anthesis("aliases", "resolve", "live", "--at", "noon", code=1).stderr
    assert anthesis_json("aliases", "rollback", "live", "--reason", "more errors")["version"] == "lab/early@1"
    lines = [line.split("\t") for line in anthesis("aliases", "history", "live").stdout.splitlines()[1:]]
    assert [[line[column] for column in (0, 1, 2, 4, 5)] for line in lines] == [
        ["3", "lab/early@1", "rollback to 1", "admin", "more errors"],
        ["2", "lab/late@1", "set", "admin", "fewer errors"],
        ["1", "lab/early@1", "set", "admin", "-"],
    ]
    assert anthesis("aliases", "delete", "live", "--if-generation", 3).stdout == "live is deleted\n"
    assert [change["kind"] for change in anthesis_json("aliases", "history", "live", "--limit", 2)] == [
        "DELETE",
        "ROLLBACK",
    ]
    assert "live" not in {alias["name"] for alias in anthesis_json("aliases", "list")}


def test_a_quantized_checkpoint_is_a_child_of_the_version_it_was_made_from(
    anthesis: Run, anthesis_json: Json, checkpoint: Path
) -> None:
    anthesis("models", "import", "lab/base", "--from", checkpoint, "--licence", "bigscience-rail-1.0")
    quantize_checkpoint(checkpoint, checkpoint.with_name("int8"))
    args = ("models", "import", "lab/base-int8", "--from", checkpoint.with_name("int8"), "--parent", "lab/base")

    version = anthesis_json(*args)

    assert (version["parent"], version["licence"]) == ("lab/base@1", "bigscience-rail-1.0")
    assert version["parameters"] == TINY.parameters
    assert anthesis_json(*args)["name"] == version["name"] == "lab/base-int8@1"
    shown = anthesis_json("models", "show", "lab/base-int8")
    assert [ancestor["name"] for ancestor in shown["lineage"]] == ["lab/base@1"]
    refused = anthesis(*args, "--licence", "apache-2.0", code=1)
    assert "licence 'apache-2.0' would replace 'bigscience-rail-1.0' of its parent lab/base@1" in refused.stderr


def test_a_state_goes_along_when_it_is_asked_for(anthesis: Run, anthesis_json: Json, checkpoint: Path) -> None:
    args = ("models", "import", "lab/stateful", "--from", checkpoint, "--licence", "apache-2.0", "--with-state")
    assert "there is no" in anthesis(*args, code=1).stderr
    (checkpoint / "state").mkdir()
    (checkpoint / "state" / "manifest.json").write_text("{}")

    assert "state/manifest.json" in {file["path"] for file in anthesis_json(*args)["files"]}
    assert len([file for file in anthesis_json(*args[:-1])["files"] if not file["carried"]]) == 4


def test_versions_are_compared_and_one_that_no_job_made_is_not_run_again(
    anthesis: Run, anthesis_json: Json, checkpoint: Path
) -> None:
    name = anthesis_json("models", "import", "lab/one", "--from", checkpoint, "--licence", "mit")["name"]
    shards = (checkpoint / "model-00001-of-00002.safetensors", checkpoint / "model-00002-of-00002.safetensors")
    data = bytearray(shards[1].read_bytes())
    data[-4:] = b"\0\0\x80\x3f"  # the last number is 1.0 instead of 0.0
    shards[1].write_bytes(data)
    other = anthesis_json("models", "import", "lab/two", "--from", checkpoint, "--licence", "mit")["name"]

    assert "lab/one@1 is bitwise equal to lab/one@1" in anthesis("models", "compare", name, name).stdout
    found = json.loads(anthesis("models", "compare", name, other, "--json", code=3).stdout)
    assert found["equal"] is False
    assert [(tensor["tensor"], tensor["num_different"], tensor["max_abs"]) for tensor in found["tensors"]] == [
        ("ln_f.bias", 1, 1.0)
    ]
    assert "1 tensors differ, by at most 1 (ln_f.bias)" in anthesis("models", "compare", name, other, code=3).stdout
    assert "lab/one@1 was imported: it has no training.json" in anthesis("reproduce", name, code=1).stderr


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


def test_a_damaged_file_of_a_model_is_named_and_repaired(
    anthesis: Run, anthesis_json: Json, checkpoint: Path, registry: RegistryProcess, tmp_path: Path
) -> None:
    config = json.dumps(TINY.to_hf() | {"seq_length": 77})  # a file of its own
    (checkpoint / "config.json").write_text(config)
    for shard in checkpoint.glob("*.safetensors"):  # and weights: all zeros are under RAIL elsewhere, so not open here
        shard.write_bytes(shard.read_bytes()[:-4] + struct.pack("<f", 1.0))
    anthesis("models", "import", "lab/rotten", "--from", checkpoint, "--licence", "mit")
    digest = digest_file(checkpoint / "config.json")
    lies = Path(registry.platform.artifacts_url) / "sha256" / digest[7:9] / digest[7:]
    lies.write_text(config.replace("77", "78"))

    lines = anthesis("models", "verify", "lab/rotten", code=1).stdout.splitlines()
    assert [line.split("\t")[1:] for line in lines if digest in line] == [["DAMAGED", str(len(config)), "config.json"]]
    assert len(lines) == 6 + 3  # LICENSES/mit.txt, NOTICE and CHANGES
    everything = json.loads(anthesis("artifacts", "verify", "--all", "--json", code=1).stdout)
    assert [item["artifact"]["digest"] for item in everything if item["state"] != "OK"] == [digest]
    assert anthesis("models", "download", "lab/rotten", "--to", tmp_path / "copy", code=1).stderr.startswith("error: ")

    anthesis("artifacts", "upload", checkpoint / "config.json", "--again")
    anthesis("models", "verify", "lab/rotten")
    shown = anthesis("models", "download", "lab/rotten", "--to", tmp_path / "copy").stdout
    assert shown.startswith("lab/rotten@1, licence mit: ")
    names = {path.name for path in checkpoint.iterdir()}
    copied = {
        str(path.relative_to(tmp_path / "copy")): path for path in (tmp_path / "copy").rglob("*") if path.is_file()
    }
    assert copied.keys() == names | {"LICENSES/mit.txt", "NOTICE", "CHANGES", "README.md"}
    assert all(copied[name].read_bytes() == (checkpoint / name).read_bytes() for name in names)


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


def test_an_import_that_was_broken_off_sends_only_what_is_missing(
    anthesis: Run, client: Client, checkpoint: Path
) -> None:
    (checkpoint / "config.json").write_text(json.dumps(TINY.to_hf() | {"seq_length": 64}))
    sent = client.artifacts.upload(checkpoint / "model-00001-of-00002.safetensors")

    version = anthesis("models", "import", "lab/resumed", "--from", checkpoint, "--licence", "mit").stdout

    assert version.startswith("lab/resumed@1: ")
    assert client.artifacts.get(sent.digest).size_bytes == sent.size_bytes


def test_a_model_that_is_not_known_needs_a_licence(anthesis: Run, checkpoint: Path) -> None:
    failed = anthesis("models", "import", "lab/unlicensed", "--from", checkpoint, code=1)

    assert failed.stderr.startswith("error: lab/unlicensed is no model yet: say its licence")


def test_a_pickle_is_refused_with_the_command_that_converts_it(anthesis: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_hf()))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")

    failed = anthesis("models", "import", "lab/pickle", "--from", tmp_path, code=1)

    assert "pytorch_model.bin" in failed.stderr
    assert "save_pretrained" in failed.stderr


@pytest.mark.parametrize("damage", ["truncated", "missing tensor", "missing shard"])
def test_a_damaged_checkpoint_is_refused_before_anything_is_sent(
    anthesis: Run, client: Client, checkpoint: Path, damage: str
) -> None:
    shard = checkpoint / "model-00002-of-00002.safetensors"
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-4])
    elif damage == "missing tensor":
        shard.write_bytes(safetensors_bytes({"transformer.ln_f.bias": (12,)}))
    else:
        shard.unlink()

    failed = anthesis("models", "import", "lab/damaged", "--from", checkpoint, "--licence", "mit", code=1)

    assert "model-00002-of-00002.safetensors" in failed.stderr or "tensor" in failed.stderr
    assert "lab/damaged" not in {model.name for model in client.models.list()}


@pytest.mark.parametrize("name", ["", "../x", "a/b/c"])
def test_a_name_that_is_not_allowed_is_refused_before_anything_is_sent(
    anthesis: Run, client: Client, checkpoint: Path, name: str
) -> None:
    (checkpoint / "config.json").write_text(json.dumps(TINY.to_hf() | {"seq_length": 32}))  # a file of its own
    args = ("--from", checkpoint, "--licence", "mit")

    as_model = anthesis("models", "import", name, *args, code=1)
    as_alias = anthesis("models", "import", "lab/aliased", *args, "--alias", name or "A", code=1)

    assert as_model.stderr.startswith(f"error: model name {name!r} is not allowed; use a-z")
    assert as_alias.stderr.startswith(f"error: alias name {name or 'A'!r} is not allowed; use a-z")
    assert "lab/aliased" not in {model.name for model in client.models.list()}
    with pytest.raises(NotFoundError):
        client.artifacts.get(digest_file(checkpoint / "config.json"))


def test_the_same_files_under_another_licence_are_refused(anthesis: Run, checkpoint: Path) -> None:
    args = ("models", "import", "lab/licensed", "--from", checkpoint, "--licence")
    anthesis(*args, "mit")

    refused = anthesis(*args, "apache-2.0", code=1)

    assert "licence 'apache-2.0' would replace 'mit' of model 'lab/licensed'" in refused.stderr


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


def hub_environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}


def test_a_model_on_the_hub_comes_a_shard_at_a_time_and_goes_on_where_it_broke(
    anthesis: Run, checkpoint: Path, tmp_path: Path
) -> None:
    for shard in checkpoint.glob("*.safetensors"):  # of its own, and more than a header
        shard.write_bytes(shard.read_bytes()[:-4] + struct.pack("<f", 2.0))
    first, second = sorted(path.name for path in checkpoint.glob("*.safetensors"))
    with running_hub("lab/on-the-hub", checkpoint) as hub:
        env = hub_environment(hub, tmp_path)
        hub.broken = {second}
        failed = anthesis("models", "import", "lab/on-the-hub", "--licence", "mit", code=1, **env).stderr
        assert failed.startswith("error: lab/on-the-hub cannot be fetched from the Hugging Face hub (")
        assert hub.fetched.count(first) == 1
        hub.broken = set()
        shown = anthesis("models", "import", "lab/on-the-hub", "--licence", "mit", **env).stdout
        assert shown == f"lab/on-the-hub@1: {TINY.parameters:,} parameters, licence mit\n"
        assert (hub.fetched.count(first), hub.fetched.count(second)) == (1, 1)
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []
    anthesis("models", "verify", "lab/on-the-hub")


def test_a_model_on_the_hub_is_checked_by_its_headers_before_a_shard_is_fetched(
    anthesis: Run, checkpoint: Path, tmp_path: Path
) -> None:
    (checkpoint / "config.json").write_text(json.dumps(TINY.to_hf() | {"n_layer": TINY.n_layer + 1}))
    with running_hub("lab/in-parts", checkpoint) as hub:
        failed = anthesis("models", "import", "lab/in-parts", code=1, **hub_environment(hub, tmp_path)).stderr
        assert "missing" in failed
        assert f"h.{TINY.n_layer}.input_layernorm.weight" in failed
        assert [name for name in hub.fetched if name.endswith(".safetensors")] == []


def test_an_import_by_a_worker_is_a_job_that_is_followed(anthesis: Run, anthesis_json: Json, tmp_path: Path) -> None:
    local = anthesis("models", "import", "lab/far", "--on-worker", "--from", tmp_path, code=1).stderr
    unknown = anthesis("models", "import", "lab/far", "--on-worker", code=1).stderr
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(
            anthesis, "models", "import", "lab/far", "--on-worker", "--licence", "mit", "--alias", "far", code=1
        )
        pending = ("jobs", "list", "--state", "pending", "--output-model", "lab/far")
        while not (found := anthesis_json(*pending)):
            assert not following.done()
        anthesis("jobs", "cancel", found[0]["id"])
        followed = following.result().stdout.splitlines()

    assert (
        local == "error: a worker imports what the hub has, as it is; with --on-worker give only --licence, --alias\n"
    )
    assert "licence" in unknown
    assert found[0]["import_model"] == {"model": "lab/far", "licence": "mit"}
    assert followed == ["PENDING", "CANCELLED", f"{found[0]['id']}: CANCELLED"]


def test_the_hub_that_cannot_be_reached_is_named(anthesis: Run) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"}

    failed = anthesis("models", "import", "bigscience/bloom-560m", code=1, **offline)

    assert failed.stderr.startswith("error: bigscience/bloom-560m cannot be fetched from the Hugging Face hub")
    assert "--from DIR" in failed.stderr
