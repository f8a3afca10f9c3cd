"""Content-addressed store of weights, tokenizers and datasets: a folder or a bucket, through fsspec.

An artifact's name is the sha256 of its bytes, so what is there never changes; the digest is verified while writing
(nothing is visible under a wrong name) and while reading.
"""

import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from services.common.errors import DataLoss, InvalidArgument, NotFound

CHUNK_BYTES = 1 << 20
FRESH = timedelta(hours=12)  # half of what the collector lets pass: what is older, its writers write again
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def check_digest(digest: str) -> str:
    """Return `digest`; raise InvalidArgument unless it reads "sha256:<64 hex>". Keeps user input out of paths."""
    if not is_digest(digest):
        raise InvalidArgument(f"digest {digest!r} is not 'sha256:' and 64 lower-case hex digits")
    return digest


def digest_file(path: Path) -> str:
    """sha256 of a file, as a digest."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A file of the store: an artifact, or what a writer left unfinished."""

    name: str  # the digest, or "incoming/<name>"
    size_bytes: int
    modify_time: datetime


class ArtifactStore:
    """Reads and writes artifacts under `url`. Blocking: async callers use a thread.

    `cache_dir` receives verified local copies where the store itself is not a local folder.
    """

    def __init__(self, url: str, cache_dir: Path) -> None:
        # No listings are remembered: other processes write here, too.
        self._fs, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        self._cache_dir = cache_dir
        self._is_local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))

    def _path(self, digest: str) -> str:
        hex_digits = check_digest(digest).removeprefix("sha256:")
        return f"{self._root}/sha256/{hex_digits[:2]}/{hex_digits}"

    @property
    def staging(self) -> Path:
        """The local folder where uploads gather before `adopt`; of a local store a part of it, so that they move."""
        return Path(self._root if self._is_local else self._cache_dir) / "incoming"

    def exists(self, digest: str) -> bool:
        return bool(self._fs.exists(self._path(digest)))

    def is_fresh(self, digest: str) -> bool:
        """Whether it is there and too young to be collected before whoever wants it has said so."""
        try:
            return datetime.now(UTC) - _modify_time(self._fs.info(self._path(digest))) < FRESH
        except FileNotFoundError:
            return False

    def size(self, digest: str) -> int:
        """Bytes of an artifact. Raises NotFound."""
        try:
            return int(self._fs.size(self._path(digest)))
        except FileNotFoundError:
            raise absent(digest) from None

    def _open(self, digest: str) -> BinaryIO:
        try:
            return cast(BinaryIO, self._fs.open(self._path(digest), "rb"))
        except FileNotFoundError:  # collected since its size was asked for
            raise absent(digest) from None

    def write(self, digest: str, chunks: Iterable[bytes]) -> int:
        """Store `chunks` under `digest`; return their bytes.

        Raises DataLoss, and keeps nothing, when the bytes have another sha256.
        """
        path = self._path(digest)
        temporary = f"{self._root}/incoming/{uuid.uuid4().hex}"
        self._fs.makedirs(os.path.dirname(temporary), exist_ok=True)
        sha256, size = hashlib.sha256(), 0
        try:
            with self._fs.open(temporary, "wb") as file:
                for chunk in chunks:
                    sha256.update(chunk)
                    size += len(chunk)
                    file.write(chunk)
                if self._is_local:
                    file.flush()
                    os.fsync(file.fileno())
            found = f"sha256:{sha256.hexdigest()}"
            if found != digest:
                raise DataLoss(f"the {size} bytes received have {found}, not {digest}; send them again")
            self._fs.makedirs(os.path.dirname(path), exist_ok=True)
            self._fs.mv(temporary, path)
        finally:
            if self._fs.exists(temporary):
                self._fs.rm(temporary)
        return size

    def adopt(self, digest: str, path: Path) -> None:
        """Store a local file that was hashed and synced already; it is gone then. Replaces what is there."""
        if self._is_local:
            target = Path(self._path(digest))
            target.parent.mkdir(parents=True, exist_ok=True)
            os.utime(path)
            os.replace(path, target)
            _sync_folder(target.parent)
        else:
            with path.open("rb") as file:
                self.write(digest, iter(lambda: file.read(CHUNK_BYTES), b""))
            path.unlink()

    def write_file(self, path: Path) -> str:
        """Store a local file; return its digest."""
        digest = digest_file(path)
        if not self.is_fresh(digest):
            with path.open("rb") as file:
                self.write(digest, iter(lambda: file.read(CHUNK_BYTES), b""))
        return digest

    def write_bytes(self, data: bytes) -> str:
        """Store `data`; return its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if not self.is_fresh(digest):
            self.write(digest, [data])
        return digest

    def read(self, digest: str, offset: int = 0) -> Iterator[bytes]:
        """Yield an artifact's bytes in chunks, from `offset` on.

        Raises NotFound, InvalidArgument for an offset behind its end; at the end DataLoss when they were damaged, which
        a part alone cannot show.
        """
        size = self.size(digest)
        if offset > size:
            raise InvalidArgument(f"offset {offset} is behind the end of {digest}, which has {size} bytes; start over")
        sha256 = hashlib.sha256()
        with self._open(digest) as file:
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                if not offset:
                    sha256.update(chunk)
                yield chunk
        if not offset and f"sha256:{sha256.hexdigest()}" != digest:
            raise DataLoss(f"artifact {digest} is damaged in the store: its bytes hash to sha256:{sha256.hexdigest()}")

    def read_bytes(self, digest: str) -> bytes:
        return b"".join(self.read(digest))

    def read_range(self, digest: str, start: int, length: int) -> bytes:
        """Part of an artifact, unverified (a hash covers the whole)."""
        with self._open(digest) as file:
            file.seek(start)
            return bytes(file.read(length))

    def url(self, digest: str, lifetime_s: int) -> str:
        """Where anybody can GET the artifact for so long; "" where the store has no such URLs. It is a secret."""
        try:
            return str(self._fs.sign(self._path(digest), expiration=lifetime_s))
        except NotImplementedError:
            return ""

    def stored(self) -> Iterator[Stored]:
        """Every artifact, then every unfinished file, each kind by name."""
        for folder, prefix in (("sha256", "sha256:"), ("incoming", "incoming/")):
            for path, info in sorted(self._fs.find(f"{self._root}/{folder}", detail=True).items()):
                name = prefix + path.rpartition("/")[2]
                if folder == "incoming" or _DIGEST.fullmatch(name):  # what else lies there is not ours
                    yield Stored(name=name, size_bytes=info["size"], modify_time=_modify_time(info))

    def remove(self, stored: Stored, *, written_before: datetime) -> bool:
        """Delete a file unless it was written since `written_before`; say whether it was deleted."""
        is_artifact = stored.name.startswith("sha256:")
        path = self._path(stored.name) if is_artifact else f"{self._root}/{stored.name}"
        try:
            if _modify_time(self._fs.info(path)) >= written_before:
                return False
            self._fs.rm_file(path)
        except FileNotFoundError:
            return False
        return True

    def local_path(self, digest: str) -> Path:
        """A local, verified, read-only file with the artifact's bytes, for memory-mapping."""
        path = Path(self._path(digest)) if self._is_local else self._cache_dir / digest.removeprefix("sha256:")
        if not path.exists():
            self.size(digest)
            self._cache_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._cache_dir, delete=False) as file:
                for chunk in self.read(digest):
                    file.write(chunk)
            os.replace(file.name, path)
        elif digest_file(path) != digest:
            raise DataLoss(f"artifact {digest} is damaged at {path}: upload it again")
        return path

    def materialize(self, files: Iterable[tuple[str, str]], folder: Path) -> Path:
        """Lay out (relative path, digest) pairs as a folder of links, as a checkpoint is laid out; return it."""
        building = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
        for name, digest in files:
            target = (building / name).resolve()
            if not target.is_relative_to(building.resolve()):
                raise InvalidArgument(f"file name {name!r} leaves its folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(self.local_path(digest))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(building, folder)
        return folder


def absent(digest: str) -> NotFound:
    """What is said of an artifact that is not there, or that the caller may not read."""
    return NotFound(f"no artifact {digest} in the store; upload it first")


def _modify_time(info: dict[str, Any]) -> datetime:
    """Of a file as fsspec describes it: seconds where it is local, `LastModified` on S3."""
    found = info["mtime"] if "mtime" in info else info["LastModified"]
    return found if isinstance(found, datetime) else datetime.fromtimestamp(found, UTC)


def _sync_folder(folder: Path) -> None:
    """A file that was moved here stays here when the power fails."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
