"""`anthesis licences` and the client's licences, against a real registry."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anthesis import AsyncClient, Client, Settings
from anthesis.errors import FailedPreconditionError, PermissionDeniedError

from bloom.tensors import expected_tensors
from tests.support.registry_data import TINY, safetensors_bytes, tokenizer_bytes

Run = Callable[..., subprocess.CompletedProcess[str]]
RAIL = "bigscience-rail-1.0"
DIGEST = "sha256:bd59d4cae17c8b7cc11d63ec0543d9fa48b51d628706f4407676521457d0ac78"


@pytest.fixture
def key(client: Client, request: pytest.FixtureRequest) -> str:
    """A user's of its own, who has accepted nothing."""
    return client.keys.create(request.node.name.replace("_", "-")[:60]).secret


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY.to_hf()))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(dict(expected_tensors(TINY))))
    (folder / "tokenizer.json").write_bytes(tokenizer_bytes())
    return folder


def test_a_licence_is_listed_shown_accepted_and_remembered(anthesis: Run, anthesis_json: Any, key: str) -> None:
    rows = [line.split("\t") for line in anthesis("licences", "list", ANTHESIS_API_KEY=key).stdout.splitlines()]
    assert {"apache-2.0", RAIL, "mit"} <= {row[0] for row in rows}
    assert {row[0]: row[2] for row in rows}[RAIL] == "needed"
    assert anthesis("licences", "show", RAIL, ANTHESIS_API_KEY=key).stdout.startswith("BigScience RAIL License v1.0\n")

    accepted = anthesis("licences", "accept", RAIL, ANTHESIS_API_KEY=key).stdout

    assert "12. To provide medical advice" in accepted
    assert f"accepted {RAIL} (BigScience RAIL License v1.0), {DIGEST}" in accepted
    rows = [line.split("\t") for line in anthesis("licences", "list", ANTHESIS_API_KEY=key).stdout.splitlines()]
    assert {row[0]: row[2] for row in rows}[RAIL] == "accepted"
    (found,) = anthesis_json("licences", "accepted", ANTHESIS_API_KEY=key)
    assert (found["licence"], found["digest"]) == (RAIL, DIGEST)


def test_another_text_is_not_accepted(anthesis: Run, key: str) -> None:
    wrong = "sha256:" + "0" * 64
    failed = anthesis("licences", "accept", RAIL, "--digest", wrong, code=1, ANTHESIS_API_KEY=key)

    assert failed.stderr.startswith(f"error: digest '{wrong}' is not that of licence {RAIL}, {DIGEST}; read its text")


def test_an_admin_registers_a_licence_and_a_user_does_not(anthesis: Run, key: str, tmp_path: Path) -> None:
    (tmp_path / "terms").write_text("Ask first.")
    args = ("licences", "create", "lab-terms-1", "--name", "Terms", "--text", tmp_path / "terms", "--must-accept")

    assert "needs the permission 'operate'" in anthesis(*args, code=1, ANTHESIS_API_KEY=key).stderr
    assert anthesis(*args).stdout.startswith("lab-terms-1: Terms, sha256:")
    assert anthesis("licences", "show", "lab-terms-1").stdout == "Ask first.\n"
    assert "exists and does not change" in anthesis(*args, code=1).stderr


def test_a_merge_is_imported_with_its_notices_once(anthesis: Run, anthesis_json: Any, checkpoint: Path) -> None:
    anthesis("models", "import", "merge/one", "--from", checkpoint, "--licence", RAIL)
    anthesis("models", "import", "merge/two", "--from", checkpoint, "--licence", "MIT")
    (checkpoint / "NOTICE").write_text("Two were merged.")
    parents = ("--parent", "merge/one", "--other-parent", "merge/two")
    args = ("models", "import", "merge/both", "--from", checkpoint, *parents)

    merged = anthesis_json(*args)

    assert anthesis_json(*args)["name"] == merged["name"] == "merge/both@1"
    assert merged["licence"] == f"{RAIL} AND mit"
    assert (merged["parent"], merged["other_parents"]) == ("merge/one@1", ["merge/two@1"])
    assert "upstream/merge/both@1/NOTICE" in {file["path"] for file in merged["files"]}


def test_the_client_says_what_is_missing(settings: Settings, key: str, anthesis: Run, checkpoint: Path) -> None:
    anthesis("models", "import", "client/rail", "--from", checkpoint, "--licence", RAIL)
    with Client(Settings(api_key=key, registry_address=settings.registry_address)) as client:
        (missing,) = client.licences.missing("client/rail")
        assert missing.text == client.licences.get(RAIL).text
        with pytest.raises(FailedPreconditionError):
            client.licences.accept(RAIL, "")
        with pytest.raises(PermissionDeniedError):
            client.licences.accepted(everyone=True)
        client.licences.accept(RAIL, missing.digest)
        assert not client.licences.missing("client/rail")
        (mine,) = client.licences.accepted()
    with Client(settings) as admin:
        assert mine in admin.licences.accepted(everyone=True)
        assert list(admin.licences.accepted(mine.principal)) == [mine]


async def test_the_asynchronous_client_has_the_same(settings: Settings) -> None:
    async with AsyncClient(settings) as client:
        listed = {licence.id: licence for licence in await client.licences.list()}
    assert listed[RAIL].digest == DIGEST
    assert listed[RAIL].must_accept
    assert not listed[RAIL].text
