"""A process sees its attempt's lease through a file that hosts share, and compares no clock with another host's."""

import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from services.common.settings import ROOT
from services.trainer.lease_file import UNSEEN_S, LeaseFile, token_of, write_lease
from services.trainer.processes import start


class Clock:
    """Of one host: nobody else reads it."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock(5e6)


@pytest.fixture
def lease(tmp_path: Path) -> Path:
    return tmp_path / "lease"


def looks(file: LeaseFile, clock: Clock, seconds: float) -> list[bool]:
    """What the process finds, looking every half second for so long."""
    found = []
    for _ in range(int(2 * seconds)):
        clock.now += 0.5
        found.append(file.is_over())
    return found


def test_a_lease_holds_from_the_last_look_that_did_not_find_it(lease, clock):
    file = LeaseFile(lease, 1, clock)
    write_lease(lease, 1, 5.0)
    assert looks(file, clock, 7) == [False] * 10 + [True] * 4


def test_a_renewed_lease_holds_on(lease, clock):
    file = LeaseFile(lease, 1, clock)
    for _ in range(10):
        write_lease(lease, 1, 5.0)
        assert not any(looks(file, clock, 4))
    assert any(looks(file, clock, 2))


def test_a_process_that_was_stopped_goes_on_where_its_lease_was_renewed_meanwhile(lease, clock):
    file = LeaseFile(lease, 1, clock)
    write_lease(lease, 1, 5.0)
    assert not file.is_over()
    clock.now += 600
    write_lease(lease, 1, 5.0)
    assert not file.is_over()
    write_lease(lease, 1, 5.0)
    assert not any(looks(file, clock, 4))


def test_a_process_that_was_stopped_ends_where_its_lease_was_not_renewed(lease, clock):
    file = LeaseFile(lease, 1, clock)
    write_lease(lease, 1, 5.0)
    assert not file.is_over()
    clock.now += 600
    assert file.is_over()


def test_the_worker_can_end_it_and_so_does_a_later_attempt(lease, clock):
    file = LeaseFile(lease, 2, clock)
    write_lease(lease, 2, 60.0)
    assert not file.is_over()
    write_lease(lease, 2, 0.0)
    assert file.is_over()
    write_lease(lease, 3, 60.0)
    assert file.is_over()


def test_an_earlier_attempts_worker_that_wakes_up_late_prolongs_and_ends_nothing(lease, clock):
    file = LeaseFile(lease, 2, clock)
    write_lease(lease, 2, 5.0)
    assert not file.is_over()
    write_lease(lease, 1, 0.0)
    assert not file.is_over()
    write_lease(lease, 1, 60.0)
    assert looks(file, clock, 5.5)[-1]


@pytest.mark.parametrize("text", [None, "", "nonsense", "1 2"])
def test_a_lease_that_cannot_be_read_is_waited_for_a_little(lease, clock, text):
    if text is not None:
        lease.write_text(text)
    file = LeaseFile(lease, 1, clock)
    assert not any(looks(file, clock, UNSEEN_S))
    assert looks(file, clock, 1)[-1]


def test_the_file_says_whose_lease_it_is(lease):
    write_lease(lease, 7, 1.0)
    assert token_of(lease) == 7


def test_a_process_ends_itself_once_its_lease_is_over(tmp_path):
    lease = tmp_path / "lease"
    write_lease(lease, 1, 1.0)
    program = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from services.trainer.lease_file import end_with_lease
        end_with_lease(Path({str(lease)!r}), 1)
        time.sleep(600)
    """)
    process = start(
        [sys.executable, "-c", program], {**os.environ, "PYTHONPATH": str(ROOT)}, tmp_path / "log", tmp_path
    )
    assert process.wait(20) == -signal.SIGKILL
