"""A full disk is waited for: somebody may make room."""

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

POLL_S = 1.0
T = TypeVar("T")


def is_full(error: BaseException) -> bool:
    """Whether a disk, or somebody's share of it, was full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def patience_s() -> float:
    """How long to wait for room: ANTHESIS_ROOM_SECONDS, by default five minutes."""
    return float(os.environ.get("ANTHESIS_ROOM_SECONDS") or 300.0)


def when_there_is_room(
    action: Callable[[], T], waiting: Callable[[], None] = lambda: None, said: Callable[[str], None] = lambda text: None
) -> T:
    """Do `action`, again while the disk is full. Raises what it raises once patience is at its end.

    waiting: called about every second meanwhile. said: told once, when the wait begins.
    """
    give_up = time.monotonic() + patience_s()
    is_first = True
    while True:
        try:
            return action()
        except OSError as error:
            if not is_full(error) or time.monotonic() > give_up:
                raise
            if is_first:
                said(f"the disk is full ({error}); waiting for room")
            is_first = False
        waiting()
        time.sleep(POLL_S)
