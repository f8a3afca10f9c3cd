import pytest

from services.common.errors import DeadlineExceeded, InvalidArgument
from services.inference.caller import Caller


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"priority": 101}, "priority=101 is out of range; use -100 (first) to 100"),
        ({"priority": -101}, "priority=-101 is out of range; use -100 (first) to 100"),
        ({"client": "x" * 257}, "client has 257 characters; use at most 256"),
    ],
)
def test_a_value_out_of_range_is_refused_with_value_and_range(settings: dict, message: str):
    with pytest.raises(InvalidArgument) as caught:
        Caller(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("deadline_s", [0.0, -1.0])
def test_a_call_without_time_left_is_not_begun(deadline_s: float):
    with pytest.raises(DeadlineExceeded, match="allow it more time"):
        Caller(deadline_s=deadline_s)


def test_the_ends_of_the_range_are_allowed():
    assert Caller(priority=-100, client="x" * 256, deadline_s=0.001).priority == -100
    assert Caller(priority=100).deadline_s is None
