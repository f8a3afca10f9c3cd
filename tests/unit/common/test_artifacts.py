"""The content-addressed store, on a folder and on S3 (moto's server)."""

import hashlib
import os
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.artifacts import ArtifactStore
from services.common.errors import DataLoss, InvalidArgument, NotFound
from tests.support.s3 import s3_store


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    with s3_store() as url:
        yield url


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    url = str(tmp_path / "artifacts") if request.param == "folder" else request.getfixturevalue("s3")
    return ArtifactStore(url, tmp_path / "cache")


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=5000))
def test_what_was_written_is_read_back_under_its_sha256(store: ArtifactStore, data: bytes) -> None:
    digest = store.write_bytes(data)
    assert digest == digest_of(data)
    assert store.read_bytes(digest) == data
    assert store.size(digest) == len(data)
    assert store.read_range(digest, 1, 3) == data[1:4]


def test_bytes_with_another_sha256_are_refused_and_nothing_stays(store: ArtifactStore) -> None:
    stated = digest_of(b"what was promised")
    with pytest.raises(DataLoss, match="not " + stated):
        store.write(stated, [b"what ", b"came"])
    assert not store.exists(stated)
    assert not store.exists(digest_of(b"what came"))


def test_a_sender_that_dies_leaves_nothing(store: ArtifactStore) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        store.write(digest_of(b"half and half"), chunks())
    assert not store.exists(digest_of(b"half and half"))


def test_an_absent_artifact_is_not_found(store: ArtifactStore) -> None:
    absent = digest_of(b"absent")
    for read in (store.size, store.read_bytes, store.local_path):
        with pytest.raises(NotFound, match=absent):
            read(absent)


@pytest.mark.parametrize(
    "digest", ["", "sha256:abc", "sha256:" + "A" * 64, "sha256:../../../../etc/passwd", "md5:" + "0" * 64]
)
def test_a_malformed_digest_reaches_no_path(store: ArtifactStore, digest: str) -> None:
    with pytest.raises(InvalidArgument, match="64"):
        store.exists(digest)


def test_a_damaged_artifact_is_noticed_on_reading(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    digest = store.write_bytes(b"weights")
    store.local_path(digest).write_bytes(b"wEights")
    with pytest.raises(DataLoss, match="damaged"):
        store.read_bytes(digest)
    with pytest.raises(DataLoss, match="damaged"):
        store.local_path(digest)


def test_files_are_laid_out_under_their_names(store: ArtifactStore, tmp_path: Path) -> None:
    files = [("config.json", store.write_bytes(b"{}")), ("sub/model.safetensors", store.write_bytes(b"w"))]
    folder = store.materialize(files, tmp_path / "models" / "m@1")
    assert (folder / "sub" / "model.safetensors").read_bytes() == b"w"
    assert store.materialize(files, tmp_path / "models" / "m@1") == folder


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside"])
def test_a_file_name_cannot_leave_its_folder(store: ArtifactStore, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="leaves"):
        store.materialize([(name, store.write_bytes(b"x"))], tmp_path / "models" / "m@1")
    assert not (tmp_path / "models" / "outside").exists()


def test_a_part_is_read_from_its_offset_and_none_behind_the_end(store: ArtifactStore) -> None:
    digest = store.write_bytes(b"0123456789")
    assert [b"".join(store.read(digest, offset)) for offset in (0, 4, 10)] == [b"0123456789", b"456789", b""]
    with pytest.raises(InvalidArgument, match=r"offset 11 is behind the end of .*, which has 10 bytes"):
        next(store.read(digest, 11))


def test_a_staged_file_becomes_the_artifact_and_replaces_a_damaged_one(store: ArtifactStore) -> None:
    digest = digest_of(b"whole")
    for _ in range(2):
        store.staging.mkdir(parents=True, exist_ok=True)
        staged = store.staging / "upload"
        staged.write_bytes(b"whole")
        store.adopt(digest, staged)
        assert store.read_bytes(digest) == b"whole"
        assert not staged.exists()
        with store._fs.open(store._path(digest), "wb") as file:
            file.write(b"damaged")


def test_what_is_stored_is_listed_and_removed_unless_it_was_written_since(store: ArtifactStore) -> None:
    digest = store.write_bytes(b"listed")
    start, soon = datetime.now(UTC) - timedelta(minutes=5), datetime.now(UTC) + timedelta(minutes=5)
    found = next(stored for stored in store.stored() if stored.name == digest)
    assert found.size_bytes == 6
    assert start < found.modify_time < soon
    assert not store.remove(found, written_before=start)
    assert store.exists(digest)
    assert store.remove(found, written_before=soon)
    assert not store.exists(digest)
    assert not store.remove(found, written_before=soon)
    assert digest not in {stored.name for stored in store.stored()}


def test_a_file_that_is_no_artifact_is_not_listed(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    digest = store.write_bytes(b"ours")
    store.local_path(digest).with_name("notes.txt").write_text("a person's")
    assert [stored.name for stored in store.stored()] == [digest]


def test_an_old_artifact_is_written_again_so_that_it_is_not_collected(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    digest = store.write_bytes(b"again")
    path = store.local_path(digest)
    fresh, old = (datetime.now(UTC) - timedelta(hours=hours) for hours in (1, 23))
    for written in (fresh, old):
        os.utime(path, (written.timestamp(),) * 2)
        store.write_bytes(b"again")
        was_written_again = path.stat().st_mtime - written.timestamp() > 60
        assert was_written_again == (written == old)


def test_a_store_with_urls_hands_out_one_that_works_without_a_key(s3: str, tmp_path: Path) -> None:
    store = ArtifactStore(s3, tmp_path / "cache")
    url = store.url(store.write_bytes(b"for anybody"), 60)
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"for anybody"
    folder = ArtifactStore(str(tmp_path / "artifacts"), tmp_path / "cache")
    assert folder.url(folder.write_bytes(b"for us"), 60) == ""
