"""How many processes a job may start on a machine."""

import pytest

from services.trainer.config import Layout
from services.trainer.failure import JobFailure
from services.trainer.launch import check_machine


@pytest.mark.parametrize(("ranks", "cores"), [(1, 1), (2, 1), (2, 2), (32, 32)])
def test_as_many_ranks_as_cores_are_started_and_two_anywhere(ranks: int, cores: int) -> None:
    check_machine(Layout(dp=ranks), cores)


def test_more_ranks_than_cores_are_refused_with_what_the_machine_can_do() -> None:
    with pytest.raises(JobFailure, match=r"'1x1x64' asks for 64 processes, .* has 2 cores; use at most '1x1x2'") as bad:
        check_machine(Layout(dp=64), 2)
    assert (bad.value.code, bad.value.parameter) == ("BAD_LAYOUT", "layout")
