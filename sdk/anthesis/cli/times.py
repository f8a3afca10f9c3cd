"""Times as people write them."""

import re
from datetime import datetime, timedelta

_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(rf"(\d{{1,6}})([{''.join(_SECONDS)}])", re.ASCII)


def parse_time(text: str, now: datetime, *, ahead: bool) -> datetime:
    """A duration from `now` on, or before it ("90d"), or a date or time, without a zone this machine's.

    Raises ValueError, saying what may be written.
    """
    try:
        if duration := _DURATION.fullmatch(text):
            length = timedelta(seconds=int(duration[1]) * _SECONDS[duration[2]])
            return now + length if ahead else now - length
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise ValueError(
            f"time {text!r} is not understood; write minutes, hours, days or weeks (30m, 12h, 90d, 4w) or a date "
            "(2027-01-31, 2027-01-31T12:00)"
        ) from None
