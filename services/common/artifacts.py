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
from pathlib import Path

import fsspec

from services.common.errors import DataLoss, InvalidArgument, NotFound

CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def check_digest(digest: str) -> str:
    """Return `digest`; raise InvalidArgument unless it reads "sha256:<64 hex>". Keeps user input out of paths."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidArgument(f"digest {digest!r} is not 'sha256:' and 64 lower-case hex digits")
    return digest


def digest_file(path: Path) -> str:
    """sha256 of a file, as a digest."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


class ArtifactStore:
    """Reads and writes artifacts under `url`. Blocking: async callers use a thread.

    `cache_dir` receives verified local copies where the store itself is not a local folder.
    """

    def __init__(self, url: str, cache_dir: Path) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._cache_dir = cache_dir
        self._is_local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))

    def _path(self, digest: str) -> str:
        hex_digits = check_digest(digest).removeprefix("sha256:")
        return f"{self._root}/sha256/{hex_digits[:2]}/{hex_digits}"

    def exists(self, digest: str) -> bool:
        return bool(self._fs.exists(self._path(digest)))

    def size(self, digest: str) -> int:
        """Bytes of an artifact. Raises NotFound."""
        try:
            return int(self._fs.size(self._path(digest)))
        except FileNotFoundError:
            raise NotFound(f"no artifact {digest} in the store; upload it first") from None

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

    def write_file(self, path: Path) -> str:
        """Store a local file; return its digest."""
        digest = digest_file(path)
        if not self.exists(digest):
            with path.open("rb") as file:
                self.write(digest, iter(lambda: file.read(CHUNK_BYTES), b""))
        return digest

    def write_bytes(self, data: bytes) -> str:
        """Store `data`; return its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if not self.exists(digest):
            self.write(digest, [data])
        return digest

    def read(self, digest: str) -> Iterator[bytes]:
        """Yield an artifact's bytes in chunks. Raises NotFound, or DataLoss at the end when they were damaged."""
        self.size(digest)
        sha256 = hashlib.sha256()
        with self._fs.open(self._path(digest), "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                sha256.update(chunk)
                yield chunk
        if f"sha256:{sha256.hexdigest()}" != digest:
            raise DataLoss(f"artifact {digest} is damaged in the store: its bytes hash to sha256:{sha256.hexdigest()}")

    def read_bytes(self, digest: str) -> bytes:
        return b"".join(self.read(digest))

    def read_range(self, digest: str, start: int, length: int) -> bytes:
        """Part of an artifact, unverified (a hash covers the whole)."""
        with self._fs.open(self._path(digest), "rb") as file:
            file.seek(start)
            return bytes(file.read(length))

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
