"""The bytes of a file that may be packed (.gz, .zst), as a stream: whatever it unpacks to, a part at a time."""

import gzip
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

from anthesis.row_files.limits import Allowed

CHUNK_BYTES = 1 << 20
PACKED = (".gz", ".zst")
NO_PYARROW = "needs pyarrow, which is not installed: pip install 'anthesis[data]'"


def unpacked(path: Path, allowed: Allowed) -> Generator[bytes, None, None]:
    """Raises ValueError for a file that is damaged or cut off, or longer than allowed."""
    num_bytes = 0
    with _open(path) as file:
        while chunk := _read(path, file):
            num_bytes += len(chunk)
            allowed.check(num_bytes)
            yield chunk


def _read(path: Path, file: Any) -> bytes:
    try:
        return bytes(file.read(CHUNK_BYTES))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path.name} is damaged: {error}; pack it again") from error


def _open(path: Path) -> Any:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    if path.name.lower().endswith(".zst"):
        try:
            import pyarrow
        except ImportError:
            raise ValueError(f"{path.name} {NO_PYARROW}") from None
        return pyarrow.input_stream(str(path), compression="zstd")
    return path.open("rb")
