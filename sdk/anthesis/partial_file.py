"""A download that has not ended: `<name>.part`, and the sha256 of what it holds. Blocking."""

import contextlib
import hashlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from anthesis.write_behind import EarlyFlush, write_hashed

CHUNK_BYTES = 1 << 20


class PartialFile:
    """Goes on from what an earlier one left. Whole and verified it takes its target's name, or it never does."""

    def __init__(self, target: Path, total: int) -> None:
        """Hash what is there; what cannot be a beginning of `total` bytes is thrown away.

        Raises BlockingIOError while another process writes it.
        """
        self._target = target
        self._path = target.with_name(target.name + ".part")
        self._file = _open_alone(self._path)
        self._sha256 = hashlib.sha256()
        self._flush = EarlyFlush(self._file.fileno())
        self.size = self._file.seek(0, os.SEEK_END)
        if self.size > total:
            self.clear()
        self._file.seek(0)
        while chunk := self._file.read(CHUNK_BYTES):
            self._sha256.update(chunk)

    @property
    def digest(self) -> str:
        return f"sha256:{self._sha256.hexdigest()}"

    def append(self, chunks: Sequence[bytes]) -> None:
        self._file.seek(self.size)  # a full disk may have taken a part of what it refused
        self._sha256, num_bytes = write_hashed(self._file, self._sha256, chunks)
        self.size += num_bytes
        self._flush.wrote(self.size)

    def clear(self) -> None:
        """Begin again."""
        self._file.truncate(0)
        self._sha256, self.size = hashlib.sha256(), 0

    def finish(self) -> None:
        """It is the target now."""
        self._file.truncate(self.size)
        os.fsync(self._file.fileno())
        os.replace(self._path, self._target)

    def close(self) -> None:
        """Leave it for the next one, unless it holds nothing."""
        if not self.size:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
        self._file.close()


def _open_alone(path: Path) -> io.FileIO:
    file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise BlockingIOError(f"{path} is being written by another download; wait until that has ended") from None
    return file
