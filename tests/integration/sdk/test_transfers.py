"""Uploads and downloads of the client while registries and clients are killed."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from anthesis import AsyncClient, Client, Settings
from anthesis.artifacts import Artifacts
from anthesis.errors import DataLossError
from anthesis.partial_file import PartialFile
from anthesis.presigned import read_url
from anthesis.v1.registry_pb2 import ARTIFACT_STATE_OK

from services.common.artifacts import ArtifactStore
from services.common.settings import ROOT
from tests.support.registry_server import RegistryProcess, platform_env, read_keys, running_registry, test_platform
from tests.support.s3 import s3_store

MIB = 1 << 20


@pytest.fixture(scope="module")
def registry() -> Iterator[RegistryProcess]:
    """One of this file's own, to be killed."""
    with tempfile.TemporaryDirectory(prefix="an-") as folder, RegistryProcess(test_platform(Path(folder))) as process:
        yield process


@pytest.fixture(scope="module")
def settings(registry: RegistryProcess) -> Settings:
    key = read_keys(registry.platform)["admin"]
    return Settings(api_key=key, registry_address=registry.platform.registry_address)


@pytest.fixture
def store(registry: RegistryProcess) -> ArtifactStore:
    return ArtifactStore(registry.platform.artifacts_url, registry.platform.data_dir / "cache" / "test")


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class KillsOnce:
    """A progress callback that kills the registry, and has it started again, when `at` bytes are done."""

    def __init__(self, registry: RegistryProcess, at: int, folder: Path | None = None) -> None:
        self._registry, self._at, self._folder = registry, at, folder
        self.done: list[int] = []
        self.restarting: threading.Thread | None = None

    def __call__(self, done: int, total: int) -> None:
        self.done.append(done)
        if done >= self._at and self.restarting is None:
            while self._folder and max((path.stat().st_size for path in self._folder.iterdir()), default=0) < MIB:
                time.sleep(0.005)  # what was handed to gRPC is not yet there
            self._registry.kill()
            self.restarting = threading.Thread(target=self._registry.restart)
            self.restarting.start()

    @property
    def went_on_at(self) -> int:
        """Bytes that were done already when the transfer went on after the kill."""
        steps = zip(self.done, self.done[1:], strict=False)
        return next((after - MIB for before, after in steps if after - before != MIB), self.done[-1])


def test_an_upload_goes_on_after_the_registry_was_killed(
    registry: RegistryProcess, client: Client, store: ArtifactStore, tmp_path: Path
) -> None:
    data = os.urandom(32 * MIB)
    (tmp_path / "file").write_bytes(data)
    store.staging.mkdir(parents=True, exist_ok=True)
    kills = KillsOnce(registry, 8 * MIB, store.staging)

    client.artifacts.upload(tmp_path / "file", progress=kills)

    assert kills.restarting
    kills.restarting.join()
    assert kills.went_on_at >= MIB
    assert kills.done[-1] == len(data)
    assert store.read_bytes(digest_of(data)) == data


def test_a_download_goes_on_after_the_registry_was_killed(
    registry: RegistryProcess, client: Client, store: ArtifactStore, tmp_path: Path
) -> None:
    data = os.urandom(64 * MIB)
    digest = store.write_bytes(data)
    kills = KillsOnce(registry, 8 * MIB)

    client.artifacts.download(digest, tmp_path / "file", progress=kills)

    assert kills.restarting
    kills.restarting.join()
    assert kills.went_on_at >= 8 * MIB
    assert (tmp_path / "file").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_client_that_is_killed_goes_on_where_it_was(
    registry: RegistryProcess, client: Client, store: ArtifactStore, tmp_path: Path
) -> None:
    size = 128 * MIB
    with (tmp_path / "file").open("wb") as file:
        file.write(os.urandom(MIB))
        file.truncate(size)
    command = [sys.executable, "-m", "anthesis.cli", "artifacts", "upload", str(tmp_path / "file")]
    env = platform_env(registry.platform)

    sending = subprocess.Popen(command, env=env, cwd=ROOT)
    store.staging.mkdir(parents=True, exist_ok=True)
    while not any(path.stat().st_size > 4 * MIB for path in store.staging.iterdir()):
        time.sleep(0.002)
    sending.kill()

    assert sending.wait() == -signal.SIGKILL
    (staged,) = store.staging.iterdir()
    here = staged.stat().st_size
    assert 4 * MIB < here < size
    went_on: list[int] = []
    sent = client.artifacts.upload(tmp_path / "file", progress=lambda done, total: went_on.append(done))
    assert went_on[0] > 4 * MIB
    assert client.artifacts.get(sent.digest).size_bytes == size
    assert next(iter(client.artifacts.verify([sent.digest]))).state == ARTIFACT_STATE_OK


def test_a_download_goes_on_from_its_part(client: Client, store: ArtifactStore, tmp_path: Path) -> None:
    data = os.urandom(4 * MIB)
    digest = store.write_bytes(data)
    (tmp_path / "file.part").write_bytes(data[: 3 * MIB])
    received: list[int] = []

    client.artifacts.download(digest, tmp_path / "file", progress=lambda done, total: received.append(done))

    assert received == [4 * MIB]
    assert (tmp_path / "file").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("part", ["damaged", "of the whole size", "too long"])
def test_a_part_that_is_no_beginning_is_thrown_away(
    client: Client, store: ArtifactStore, tmp_path: Path, part: str
) -> None:
    data = os.urandom(2 * MIB)
    digest = store.write_bytes(data)
    wrong = {"damaged": b"x" * MIB, "of the whole size": b"x" * len(data), "too long": data + b"x"}
    (tmp_path / "file.part").write_bytes(wrong[part])

    client.artifacts.download(digest, tmp_path / "file")

    assert (tmp_path / "file").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_damaged_in_the_store_is_never_handed_over_and_can_be_sent_again(
    client: Client, store: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_bytes(b"weights")
    digest = client.artifacts.upload(tmp_path / "mine").digest
    store.local_path(digest).write_bytes(b"wEights")

    with pytest.raises(DataLossError, match="damaged"):
        client.artifacts.download(digest, tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    client.artifacts.upload(tmp_path / "mine", again=True)
    client.artifacts.download(digest, tmp_path / "copy")

    assert (tmp_path / "copy").read_bytes() == b"weights"


def test_two_downloads_do_not_write_one_part(client: Client, store: ArtifactStore, tmp_path: Path) -> None:
    digest = store.write_bytes(b"for one at a time")
    other = PartialFile(tmp_path / "file", 100)

    with pytest.raises(BlockingIOError, match=r"file\.part is being written by another download"):
        client.artifacts.download(digest, tmp_path / "file")
    other.close()

    client.artifacts.download(digest, tmp_path / "file")


def test_what_a_full_disk_refused_is_written_over(tmp_path: Path) -> None:
    """A write that failed halfway leaves bytes that nobody counted."""
    partial = PartialFile(tmp_path / "file", 8)
    partial.append([b"half"])
    with (tmp_path / "file.part").open("ab") as file:
        file.write(b"written before the disk was full")
    partial.append([b"half"])
    partial.finish()
    partial.close()

    assert (tmp_path / "file").read_bytes() == b"halfhalf"


async def test_a_bucket_is_read_by_its_url_and_through_the_registry_where_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(2 * MIB)
    with s3_store() as url:
        async with running_registry(data_dir=tmp_path / "data", artifacts_url=url) as registry:
            settings = Settings(api_key=registry.admin_key, registry_address=registry.address)
            async with AsyncClient(settings) as client:
                digest = (await client.artifacts.upload_bytes(data)).digest
                with monkeypatch.context() as patch:
                    patch.delattr(Artifacts, "_receive")
                    (tmp_path / "by-url.part").write_bytes(data[:MIB])
                    await client.artifacts.download(digest, tmp_path / "by-url")
                with monkeypatch.context() as patch:
                    patch.setattr("anthesis.artifacts.read_url", cut_off(data))
                    await client.artifacts.download(digest, tmp_path / "by-registry")
    assert (tmp_path / "by-url").read_bytes() == (tmp_path / "by-registry").read_bytes() == data


def cut_off(data: bytes) -> Callable[[str, int], Iterator[bytes]]:
    """A store whose connection fails after the first MiB."""

    def read_url(url: str, offset: int) -> Iterator[bytes]:
        yield data[offset : offset + MIB]
        raise TimeoutError

    return read_url


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/file", "/etc/passwd"])
def test_a_url_of_another_kind_is_not_opened(url: str) -> None:
    with pytest.raises(OSError, match="neither http nor https"):
        next(read_url(url, 0))
