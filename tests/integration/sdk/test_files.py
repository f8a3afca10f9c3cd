"""Files through the SDK, sync and async, and the `anthesis` command."""

from pathlib import Path

import pytest
from anthesis import AsyncClient, Client, Settings
from anthesis.errors import InvalidArgumentError, NotFoundError
from anthesis.v1.registry_pb2 import DATASET_FORMAT_MULTITASK

ROWS = b'{"prompt": "one", "completion": " two"}\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(ROWS)
    return path


def test_a_file_goes_up_is_found_comes_down_and_goes(client: Client, path: Path, tmp_path: Path) -> None:
    file = client.files.upload(path)
    assert (file.filename, file.purpose, file.num_rows) == ("pairs.jsonl", "fine-tune", 1)
    assert file.format == DATASET_FORMAT_MULTITASK
    assert client.files.get(file.id) == file
    assert file in list(client.files.list("fine-tune"))
    assert list(client.files.list("fine-tune-results")) == []
    assert client.files.download(file.id, tmp_path / "back").read_bytes() == ROWS
    client.files.delete(file.id)
    with pytest.raises(NotFoundError, match="`anthesis files list` shows yours"):
        client.files.get(file.id)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(ROWS + b'{"prompt": "one"}\n')
    return path


async def test_the_asynchronous_client_does_it_too(settings: Settings, path: Path, broken: Path) -> None:
    async with AsyncClient(settings) as client:
        file = await client.files.upload(path)
        assert file in [found async for found in client.files.list()]
        with pytest.raises(InvalidArgumentError, match='row 2: no "completion"'):
            await client.files.upload(broken)
        await client.files.delete(file.id)


def test_the_command_does_it_too(anthesis, anthesis_json, path: Path, tmp_path: Path) -> None:
    (file,) = anthesis_json("files", "upload", path)
    assert file["id"] in [found["id"] for found in anthesis_json("files", "list", "--purpose", "fine-tune")]
    line = next(line for line in anthesis("files", "list").stdout.splitlines() if file["id"] in line)
    assert line.split("\t")[1:5] == ["pairs.jsonl", "fine-tune", "1", "40 B"]
    anthesis("files", "download", file["id"], tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == ROWS
    anthesis("files", "delete", file["id"])
    assert f"no file '{file['id']}'" in anthesis("files", "delete", file["id"], code=1).stderr
