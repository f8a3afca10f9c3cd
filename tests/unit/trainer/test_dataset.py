"""The order of samples: a pure function of the seed and of the samples consumed."""

from hypothesis import given
from hypothesis import strategies as st

from services.trainer.dataset import Order

variants = st.lists(st.integers(1, 20), min_size=1, max_size=4).map(tuple)


@given(variants, st.integers(0, 2**31), st.integers(1, 3))
def test_each_epoch_visits_every_window_of_its_variant_once(sizes, seed, cycles):
    order = Order(sizes, seed)
    seen = order.windows(0, cycles * sum(sizes))
    assert sorted(seen) == sorted(list(range(sum(sizes))) * cycles)
    start = 0
    for variant, size in enumerate(sizes):
        first = sum(sizes[:variant])
        assert sorted(seen[start : start + size]) == list(range(first, first + size))
        start += size


@given(variants, st.integers(0, 2**31), st.integers(0, 100), st.integers(0, 30))
def test_the_order_does_not_depend_on_where_reading_starts(sizes, seed, start, count):
    assert Order(sizes, seed).windows(0, start + count)[start:] == Order(sizes, seed).windows(start, count)


def test_epochs_and_seeds_shuffle_differently():
    order = Order((200,), seed=1)
    assert order.windows(0, 200) != order.windows(200, 200)
    assert order.windows(0, 200) != Order((200,), seed=2).windows(0, 200)
