"""The content-addressed store, on a folder and on S3 (moto's server)."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.artifacts import ArtifactStore
from services.common.errors import DataLoss, InvalidArgument, NotFound


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
        host, port = server.get_host_and_port()
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        s3fs.S3FileSystem().mkdir("artifacts")
        yield "s3://artifacts/anthesis"
        server.stop()


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
