"""Why a job failed, as its submitter sees it. The process that knows writes it down; the worker reports it."""

import contextlib
import errno
import json
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

from services.trainer.room import is_full

NO_ROOM_TO_SAY = errno.ENOSPC  # exit code of a process that failed and could not write down why


class JobFailure(Exception):
    """The job cannot succeed, however often it is tried. `code` is stable, upper snake case."""

    def __init__(self, code: str, message: str, parameter: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.parameter = parameter

    def __reduce__(self) -> tuple[type["JobFailure"], tuple[str, str, str]]:
        return JobFailure, (self.code, self.message, self.parameter)  # a pool's process raises it in ours

    def save(self, path: Path) -> None:
        """Write the failure to `path` unless one is there: of several ranks the first tells the cause."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps({"code": self.code, "message": self.message, "parameter": self.parameter}))
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> "JobFailure | None":
        """The failure at `path`, if one was written."""
        return cls(**json.loads(path.read_text())) if path.exists() else None


def from_exception(error: BaseException) -> JobFailure | None:
    """The failure that an exception stands for; None when it only echoes the death of another rank."""
    if isinstance(error, JobFailure):
        return error
    last_line = "".join(traceback.format_exception_only(error)).strip()
    if is_full(error):
        return JobFailure("DISK_FULL", f"no space left for the job's files: {error}; free some and submit again")
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        remedy = "lower micro_batch or sequence_length, or choose a smaller model"
        return JobFailure("OUT_OF_MEMORY", f"{last_line[:500]}; {remedy}", "micro_batch")
    if _is_lost_peer(error):
        return None
    frames = "".join(traceback.format_tb(error.__traceback__)[-2:])
    return JobFailure("TRAINING_ERROR", f"{last_line[:1000]}\n{frames[-1000:]}")


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text or "not enough memory" in text


def _is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another rank is gone: gloo says so in a RuntimeError, NCCL by type."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("gloo", "connection closed by peer", "connection reset")
    )


@contextlib.contextmanager
def recorded(path: Path) -> Iterator[None]:
    """Write what the body raises to `path`, then let it end the process; with NO_ROOM_TO_SAY on a full disk."""
    try:
        yield
    except Exception as error:
        failure = from_exception(error)
        try:
            if failure is not None:
                failure.save(path)
        except OSError as full:
            if not is_full(full):
                raise
            raise SystemExit(NO_ROOM_TO_SAY) from error
        raise
