"""A file that an upload grows, with the sha256 of what it holds. Blocking: async callers use a thread."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from anthesis.write_behind import EarlyFlush, write_hashed

from services.common.artifacts import CHUNK_BYTES
from services.common.errors import FailedPrecondition


class StagedFile:
    """What is on disk counts: opened anew, after whatever killed its writer, its bytes are hashed again."""

    def __init__(self, path: Path, offset: int) -> None:
        """Go on at `offset`, which cuts off what lies behind. Raises FailedPrecondition where less is there."""
        self._file = path.open("r+b", buffering=0)
        self._sha256 = hashlib.sha256()
        self._flush = EarlyFlush(self._file.fileno())
        self.size = offset
        try:
            if offset > (found := os.fstat(self._file.fileno()).st_size):
                raise FailedPrecondition(f"offset {offset} is behind the {found} bytes that are here; go on from there")
            self._file.truncate(offset)
            while chunk := self._file.read(CHUNK_BYTES):
                self._sha256.update(chunk)
        except BaseException:
            self.close()
            raise

    @property
    def digest(self) -> str:
        return f"sha256:{self._sha256.hexdigest()}"

    def append(self, chunks: Sequence[bytes]) -> None:
        """Raises OSError on a full disk."""
        self._sha256, num_bytes = write_hashed(self._file, self._sha256, chunks)
        self.size += num_bytes
        self._flush.wrote(self.size)

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
