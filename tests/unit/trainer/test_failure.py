"""What a job's submitter is told."""

import errno

import pytest

from services.trainer.failure import JobFailure, from_exception, recorded


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JobFailure("BAD_DATA", "row 3"), "BAD_DATA"),
        (OSError(errno.ENOSPC, "No space left on device"), "DISK_FULL"),
        (MemoryError(), "OUT_OF_MEMORY"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), "OUT_OF_MEMORY"),
        (ValueError("something else"), "TRAINING_ERROR"),
    ],
)
def test_errors_have_stable_codes(error, code):
    failure = from_exception(error)
    assert failure is not None
    assert failure.code == code


def test_the_echo_of_another_ranks_death_is_no_cause():
    assert from_exception(RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]:1")) is None


def test_the_first_of_several_ranks_tells_the_cause(tmp_path):
    path = tmp_path / "failure.json"
    for message in ("first", "second"):
        with pytest.raises(JobFailure), recorded(path):
            raise JobFailure("BAD_DATA", message, "datasets")
    failure = JobFailure.load(path)
    assert failure is not None
    assert (failure.code, failure.message, failure.parameter) == ("BAD_DATA", "first", "datasets")
