"""`anthesis models` and `anthesis aliases` against a real registry, as a program in a pipe."""

import json
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from anthesis import Client
from anthesis.artifacts import digest_file
from anthesis.errors import NotFoundError

from bloom.quantize import quantize_checkpoint
from tests.support.hub import Hub, running_hub
from tests.support.registry_data import TINY, safetensors_bytes
from tests.support.registry_server import RegistryProcess

Run = Callable[..., subprocess.CompletedProcess[str]]
Json = Callable[..., Any]


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
