"""When ranks are taken to hang."""

import os
from pathlib import Path

import pytest

from services.trainer.progress import Progress
from services.trainer.watchdog import Patience, Watchdog

PATIENCE = Patience(least_s=60.0, factor=20.0, ends_s=600.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def steps(first: int, count: int, seconds_per_step: float, total: int = 1000) -> list[Progress]:
    return [
        Progress(
            step=step,
            total_steps=total,
            loss=1.0,
            learning_rate=0.1,
            grad_norm=1.0,
            tokens_per_second=1.0,
            tokens_seen=step,
            seconds_left=1.0,
            time=1e9 + step * seconds_per_step,
        )
        for step in range(first, first + count)
    ]


def overdue_after(seconds: float, *seen: list[Progress]) -> str:
    """Seconds after the last of `seen`."""
    clock = Clock()
    watchdog = Watchdog(PATIENCE, clock=clock)
    for some in seen:
        clock.now += 500.0
        watchdog.saw(some)
    clock.now += seconds
    watchdog.saw([])  # nothing new
    return watchdog.overdue()


def test_quick_steps_are_waited_for_a_minute():
    assert not overdue_after(60.0, steps(1, 5, 0.2))
    assert overdue_after(61.0, steps(1, 5, 0.2)) == "no step for 61 s, where one takes 0.2 s"


def test_slow_steps_are_waited_for_twenty_times_as_long_as_they_usually_take():
    pause = steps(1, 5, 100.0), steps(50, 5, 100.0)  # one step took long: the median does not mind
    assert not overdue_after(2000.0, *pause)
    assert overdue_after(2001.0, *pause)


def test_start_and_export_are_waited_for_longer():
    assert not overdue_after(600.0)
    assert overdue_after(601.0) == "nothing done for 601 s"
    assert not overdue_after(600.0, steps(1, 1, 0.2))
    assert not overdue_after(600.0, steps(991, 10, 0.2))
    assert overdue_after(601.0, steps(991, 10, 0.2))


def test_another_start_forgets_the_steps_before():
    clock = Clock()
    watchdog = Watchdog(PATIENCE, clock=clock)
    watchdog.saw(steps(1, 5, 0.2))
    clock.now = 500.0
    watchdog.start()
    clock.now += 600.0
    assert not watchdog.overdue()


@pytest.mark.parametrize("does", ["validates", "cannot write its steps down"])
def test_a_rank_that_does_else_than_steps_hangs_only_once_it_shows_no_sign(tmp_path: Path, does: str):
    clock, signs = Clock(), {"cannot write its steps down": tmp_path / "progress", "validates": tmp_path / "validating"}
    watchdog = Watchdog(PATIENCE, list(signs.values()), clock)
    watchdog.saw(steps(1, 3, seconds_per_step=1.0))
    for seconds in (1, 2):
        clock.now += 59.0
        signs[does].touch()
        os.utime(signs[does], (4e9 + seconds, 4e9 + seconds))
        assert not watchdog.overdue()
    clock.now += 61.0
    assert watchdog.overdue().startswith("no step for 61 s")
