"""The order of samples with skips: what a run has seen before it went back does not come again."""

import hypothesis.strategies as st
from hypothesis import given, settings

from services.trainer.skips import Skip, Skips


def past(skips: Skips, then: int, now: int) -> Skips:
    return skips.past(then, now, step=now, back_to=then, reason="a test")


def first_samples(skips: Skips, count: int) -> list[int]:
    return [skips.at(consumed) for consumed in range(count)]


def test_without_skips_samples_come_in_their_order():
    assert first_samples(Skips(), 5) == [0, 1, 2, 3, 4]


def test_what_was_seen_since_the_checkpoint_is_left_out():
    assert first_samples(past(Skips(), 2, 5), 5) == [0, 1, 5, 6, 7]


def test_a_second_skip_counts_from_what_the_first_left():
    skips = past(past(Skips(), 2, 5), 3, 5)  # consumed 3 and 4 were samples 6 and 7
    assert first_samples(skips, 6) == [0, 1, 5, 8, 9, 10]


def test_going_back_further_leaves_out_all_that_lies_between():
    skips = past(past(Skips(), 4, 6), 1, 5)  # then 1 2 3 | 6 were seen again, and are left out with 4 and 5
    assert first_samples(skips, 4) == [0, 7, 8, 9]


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), max_size=8))
def test_no_sample_comes_again_after_the_run_went_back_past_it(ranges):
    skips, consumed = Skips(), 0
    left_out: set[int] = set()
    seen: list[int] = []  # what the run keeps: samples of the steps that it did not take back
    for back, ahead in ranges:
        seen += [skips.at(n) for n in range(consumed, consumed + ahead)]
        consumed += ahead
        then = max(0, consumed - 1 - back)
        left_out |= set(seen[then:])
        skips = past(skips, then, consumed)
        del seen[then:]
        consumed = then
        assert first_samples(skips, consumed) == seen  # what was kept is as it was
        following = {skips.at(n) for n in range(consumed, consumed + 300)}
        assert len(following) == 300
        assert not following & (left_out | set(seen))


def test_skips_are_kept_in_a_file(tmp_path):
    path = tmp_path / "skips.json"
    assert Skips.load(path) == Skips()
    skips = past(past(Skips(), 2, 5), 1, 9)
    skips.save(path)
    assert Skips.load(path) == skips
    assert skips.skips[0] == Skip(first=2, end=5, step=5, back_to=2, reason="a test")
