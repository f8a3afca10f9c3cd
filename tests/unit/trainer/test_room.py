"""A full disk: a real one of a few pages, where this user may mount it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.trainer.failure import NO_ROOM_TO_SAY, JobFailure, from_exception, recorded
from services.trainer.lease_file import LeaseFile, write_lease
from services.trainer.progress import ProgressReader, ProgressWriter
from services.trainer.room import when_there_is_room
from services.trainer.watchdog import Watchdog
from tests.support.small_disk import fill, small_disk
from tests.unit.trainer.test_progress import step
from tests.unit.trainer.test_watchdog import PATIENCE, Clock, steps


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "64k"):
        yield tmp_path / "disk"


def test_a_lease_is_extended_on_a_full_disk(disk):
    lease = disk / "lease"
    now = [0.0]
    write_lease(lease, 3, 5.5)
    seen = LeaseFile(lease, 3, lambda: now[0])
    assert not seen.is_over()
    fill(disk)
    write_lease(lease, 3, 4321.25)
    assert not seen.is_over()
    now[0] = 4321.0
    assert not seen.is_over()
    now[0] = 4322.0
    assert seen.is_over()


def test_progress_waits_in_memory_until_there_is_room(disk):
    path = disk / "progress.jsonl"
    writer, reader = ProgressWriter(path), ProgressReader(path)
    writer.step(step(1))
    writer.flush()
    filler = fill(disk)
    os.utime(path, (0, 0))
    clock = Clock()
    watchdog = Watchdog(PATIENCE, [path], clock)
    watchdog.saw(steps(1, 5, 0.2))
    for number in range(2, 50):  # more than the rest of a page
        writer.step(step(number))
        writer.flush()
    clock.now = PATIENCE.least_s + 1
    assert not watchdog.overdue()  # the worker sees that it tries
    clock.now *= 3
    assert watchdog.overdue()
    seen = [found.step for found in reader.read()[0]]
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) < 49
    reader.reported()  # cannot be remembered now, which is no failure
    filler.unlink()
    writer.flush()
    assert [found.step for found in reader.read()[0]] == list(range(len(seen) + 1, 50))


def test_what_needs_room_is_done_once_there_is_some(disk, monkeypatch):
    monkeypatch.setattr("services.trainer.room.POLL_S", 0.0)
    filler = fill(disk)
    waited, said = [], []

    def wait() -> None:
        waited.append(True)
        if len(waited) == 3:
            filler.unlink()

    when_there_is_room(lambda: (disk / "text").write_text("x" * 9000), wait, said.append)
    assert (disk / "text").stat().st_size == 9000
    assert len(waited) == 3
    assert len(said) == 1


def test_where_no_room_comes_the_reason_is_the_full_disk(disk, monkeypatch):
    monkeypatch.setattr("services.trainer.room.POLL_S", 0.0)
    monkeypatch.setenv("ANTHESIS_ROOM_SECONDS", "0.05")
    fill(disk)
    with pytest.raises(OSError, match="No space left") as raised:
        when_there_is_room(lambda: (disk / "text").write_text("x" * 9000))
    failure = from_exception(raised.value)
    assert failure is not None
    assert failure.code == "DISK_FULL"


def test_a_process_that_has_no_room_to_say_why_it_failed_says_so_by_its_exit_code(disk):
    fill(disk)
    path = disk / "failure.json"
    with pytest.raises(SystemExit) as ended, recorded(path):
        raise JobFailure("BAD_DATA", "x" * 9000)
    assert ended.value.code == NO_ROOM_TO_SAY
    assert [found.name for found in disk.iterdir()] == ["filler"]


def test_other_errors_are_not_waited_for(tmp_path):
    with pytest.raises(FileNotFoundError):
        when_there_is_room(lambda: (tmp_path / "missing").read_text(), lambda: pytest.fail("waited"))
