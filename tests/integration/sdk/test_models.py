"""Deleting, tagging, searching and describing models by the SDK and the command."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from anthesis import AsyncClient, Client, Settings
from anthesis.errors import AbortedError, FailedPreconditionError, NotFoundError
from anthesis.v1 import registry_pb2 as pb
from huggingface_hub import ModelCard

from services.common.artifacts import ArtifactStore
from tests.support.registry_data import TINY, safetensors_bytes, store_checkpoint, tokenizer_bytes
from tests.support.registry_server import RegistryProcess

Run = Callable[..., Any]


@pytest.fixture
def add_version(registry: RegistryProcess, client: Client) -> Callable[..., pb.ModelVersion]:
    def add(model: str, **fields: Any) -> pb.ModelVersion:
        platform = registry.platform
        stored = store_checkpoint(ArtifactStore(platform.artifacts_url, platform.data_dir / "cache" / "test"))
        files = [pb.ModelFile(path=file.path, digest=file.digest) for file in stored.files]
        values = {
            "model": model,
            "licence": "mit",
            "tokenizer_digest": stored.tokenizer_digest,
            "files": files,
        } | fields
        return client.models.create_version(pb.ModelVersion(**values))

    return add


def test_the_command_deletes_what_nothing_needs_and_brings_it_back(
    anthesis: Run, anthesis_json: Run, add_version
) -> None:
    add_version("gone/one")
    anthesis("aliases", "set", "keeper", "gone/one@1")
    assert "is needed by alias 'keeper'" in anthesis("models", "delete", "gone/one@1", code=1).stderr
    anthesis("aliases", "delete", "keeper")
    assert anthesis("models", "delete", "gone/one@1").stdout.startswith(
        "gone/one@1 is deleted; its files are kept until 20"
    )
    assert "was deleted at" in anthesis("models", "card", "gone/one@1", code=1).stderr
    assert anthesis_json("models", "versions", "gone/one") == []
    [kept] = anthesis_json("models", "versions", "gone/one", "--deleted")
    assert (kept["state"], kept["deleted_by"]) == ("DELETED", "admin")
    assert "deleted by admin" in anthesis("models", "versions", "gone/one", "--deleted").stdout
    assert anthesis("models", "delete", "gone/one").stdout == "gone/one is deleted\n"
    assert "gone/one" not in [model["name"] for model in anthesis_json("models", "list")]
    assert "gone/one" in [model["name"] for model in anthesis_json("models", "list", "--deleted")]
    assert anthesis("models", "undelete", "gone/one").stdout == "gone/one is back\n"
    assert anthesis("models", "undelete", "gone/one@1").stdout == "gone/one@1 is back\n"
    assert anthesis_json("models", "versions", "gone/one")[0]["state"] == "READY"


def test_the_command_tags_and_searches(anthesis: Run, anthesis_json: Run, add_version) -> None:
    add_version("found/first", tags=["Rare"])
    add_version("found/second")
    assert (
        anthesis("models", "tag", "found/second", "--add", "Blue", "--add", "x", "--remove", "y").stdout == "blue, x\n"
    )
    assert (
        anthesis("models", "tag", "found/second", "--remove", "x", "--remove", "blue").stdout
        == "found/second has no tags\n"
    )

    def names(*args: str) -> list[str]:
        return [row["name"] for row in anthesis_json("models", *args)]

    assert names("list", "--search", "FOUND/") == ["found/first", "found/second"]
    assert names("list", "--search", "found/", "--newest", "--ready", "--since", "1d") == [
        "found/second",
        "found/first",
    ]
    assert names("versions", "--tag", "rare", "--licence", "mit") == ["found/first@1"]
    assert names("versions", "--search", "found/", "--until", "1d") == []
    assert "tag '<b>' is not allowed" in anthesis("models", "list", "--tag", "<b>", code=1).stderr
    assert anthesis_json("jobs", "list", "--search", "found/", "--created-by", "nobody") == []


def test_a_card_is_edited_as_a_file(anthesis: Run, anthesis_json: Run, add_version, tmp_path: Path) -> None:
    add_version("card/one")
    file = tmp_path / "card.md"
    file.write_text(
        anthesis("models", "card", "card/one").stdout.replace("## Evaluation", "## Evaluation\n\nIt blooms.")
    )
    edited = anthesis("models", "card", "card/one", "--edit", file, "--if-generation", 0).stdout
    assert "\nIt blooms.\n" in edited
    assert ModelCard(edited).data.license == "mit"
    assert (
        "is at generation 1"
        in anthesis("models", "card", "card/one", "--edit", file, "--if-generation", 0, code=1).stderr
    )
    file.write_text("<script>")
    assert "is HTML" in anthesis("models", "card", "card/one", "--edit", file, code=1).stderr
    assert "It blooms." in anthesis_json("models", "card", "card/one@1")["markdown"]
    assert "--edit" in anthesis("models", "card", "card/one", "--if-generation", 0, code=1).stderr


def test_a_download_has_the_card_of_then_and_an_imported_readme_beside(
    anthesis: Run, client: Client, tmp_path: Path
) -> None:
    import json

    from bloom.tensors import expected_tensors

    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY.to_hf()))
    (folder / "tokenizer.json").write_bytes(tokenizer_bytes())
    tensors = {f"transformer.{name}": shape for name, shape in expected_tensors(TINY).items()}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    (folder / "README.md").write_text("# By its authors\n")
    anthesis("models", "import", "card/two", "--from", folder, "--licence", "mit")
    client.models.update_card("card/two@1", "Written later.")
    anthesis("models", "download", "card/two", "--to", tmp_path / "down")
    card = ModelCard((tmp_path / "down" / "README.md").read_text())
    assert "Written later." in card.text
    assert card.data.license == "mit"
    assert (tmp_path / "down" / "upstream" / "card" / "two@1" / "README.md").read_text() == "# By its authors\n"


def test_the_client_does_all_of_it(client: Client, add_version) -> None:
    add_version("sdk/one")
    assert list(client.models.tag("sdk/one@1", add=["gold"])) == ["gold"]
    day = timedelta(days=1)
    found = client.models.list_versions(tag="gold", text="sdk/", since=datetime.now(UTC) - day, order="oldest")
    assert [version.name for version in found] == ["sdk/one@1"]
    assert not client.models.list(text="sdk/", until=datetime.now(UTC) - day)
    assert not client.jobs.list(output_model="sdk/one", base="x@1", dataset="y", text="sdk")
    with pytest.raises(ValueError, match="order 'up' is not known"):
        client.models.list(order="up")  # type: ignore[arg-type]
    assert client.models.update_card("sdk/one", "Mine.", if_generation=0).generation == 1
    with pytest.raises(AbortedError):
        client.models.update_card("sdk/one", "Theirs.", if_generation=0)
    with pytest.raises(FailedPreconditionError, match="has version 'sdk/one@1'"):
        client.models.delete("sdk/one")
    assert client.models.delete_version("sdk/one@1").state == pb.VERSION_STATE_DELETED
    with pytest.raises(NotFoundError, match="was deleted"):
        client.models.card("sdk/one@1")
    assert client.models.delete("sdk/one").deleted_by == "admin"
    assert not client.models.undelete("sdk/one").deleted_by
    assert client.models.undelete_version("sdk/one@1").state == pb.VERSION_STATE_READY


def test_the_asynchronous_client_does_it_too(settings: Settings, add_version) -> None:
    add_version("sdk/two")

    async def work() -> tuple[list[str], str]:
        async with AsyncClient(settings) as client:
            await client.models.tag("sdk/two", add=["silver"])
            models = [model.name for model in await client.models.list(tag="silver")]
            return models, (await client.models.card("sdk/two")).markdown

    models, card = asyncio.run(work())
    assert models == ["sdk/two"]
    assert "- silver" in card
