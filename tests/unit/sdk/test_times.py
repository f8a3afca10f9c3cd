from datetime import UTC, datetime, timedelta

import pytest
from anthesis.cli.times import parse_time
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)


@given(st.integers(0, 700_000), st.sampled_from(["minutes", "hours", "days"]))
def test_a_duration_goes_from_now_either_way(count: int, unit: str) -> None:
    length = timedelta(**{unit: count})
    assert parse_time(f"{count}{unit[0]}", NOW, ahead=True) == NOW + length
    assert parse_time(f"{count}{unit[0]}", NOW, ahead=False) == NOW - length


@given(st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2999, 1, 1), timezones=st.just(UTC)))
def test_an_iso_time_is_itself(time: datetime) -> None:
    assert parse_time(time.isoformat(), NOW, ahead=True) == time


def test_a_date_is_midnight_here() -> None:
    assert parse_time("2027-01-31", NOW, ahead=True) == datetime(2027, 1, 31).astimezone()


# The last is past the year 9999.
@pytest.mark.parametrize("text", ["", "soon", "-5d", "5", "d", "5 d", "1234567d", "٣d", "2027-13-01", "999999w"])
def test_anything_else_is_refused_with_what_may_be_written(text: str) -> None:
    with pytest.raises(ValueError, match="is not understood; write minutes, hours, days or weeks"):
        parse_time(text, NOW, ahead=True)
