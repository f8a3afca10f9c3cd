"""Sampling and penalties in Triton's interpreter; test_interpreted.py runs this file with TRITON_INTERPRET=1.

B = rows, V = vocabulary
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bloom.kernels import naive, penalties, sampling
from bloom.kernels.naive.sampling import _mix, uniform
from tests.support.triton_interpreter import fresh_memory_holds_nan, mutated

V = 120


@pytest.fixture(autouse=True)
def _poisoned() -> Iterator[None]:
    with fresh_memory_holds_nan():
        yield


def inputs(num: int, *, spread: float = 3.0, vocabulary: int = V) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(num, vocabulary, generator=generator) * spread
    seeds = torch.randint(-(2**63), 2**63 - 1, (num,), generator=generator)
    positions = torch.randint(0, 65536, (num,), generator=generator)
    return logits, seeds, positions, torch.linspace(0.5, 2.0, num)


def draw(module: Any, logits: Tensor, *rest: Tensor, **filters: Any) -> Tensor:
    return module.sample(logits, *rest, chunk=64, step=32, **filters)


FILTERS: dict[str, dict[str, Tensor]] = {
    "none": {},
    "top-k": {"top_ks": torch.tensor([0, 1, 2, 5, 50, 119, 120, 5000], dtype=torch.int32)},
    "top-p": {"top_ps": torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99, 0.999999, 1.0, 1.0])},
    "min-p": {"min_ps": torch.tensor([0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 1.0, 0.0])},
    "all": {
        "top_ks": torch.tensor([50, 0, 2, 100, 30, 7, 3, 0], dtype=torch.int32),
        "top_ps": torch.tensor([0.9, 0.5, 1.0, 0.8, 0.3, 0.95, 0.7, 1.0]),
        "min_ps": torch.tensor([0.01, 0.2, 0.0, 0.5, 0.0, 0.05, 0.0, 0.0]),
    },
}


@pytest.mark.parametrize("name", FILTERS)
def test_the_kernel_draws_what_its_twin_draws(name: str):
    arguments = inputs(8, spread=1.0)
    assert torch.equal(draw(sampling, *arguments, **FILTERS[name]), naive.sample(*arguments, **FILTERS[name]))


def test_ids_past_the_vocabulary_are_never_drawn():
    logits, *rest = inputs(8)
    logits[:, 90:] = 1e9
    for filters in (FILTERS["none"], FILTERS["all"]):
        drawn = draw(sampling, logits, *rest, num_ids=90, **filters)
        assert (drawn < 90).all()
        assert torch.equal(drawn, naive.sample(logits, *rest, num_ids=90, **filters))


def test_temperature_0_takes_the_lowest_of_the_likeliest():
    logits, seeds, positions, temperatures = inputs(4)
    logits[:, [100, 30, 119]] = 99.0
    temperatures[:2] = 0.0
    temperatures[2] = 1e-38
    drawn = draw(sampling, logits, seeds, positions, temperatures)
    assert drawn[:2].tolist() == [30, 30]
    assert int(drawn[2]) in (30, 100, 119)
    assert torch.equal(drawn, naive.sample(logits, seeds, positions, temperatures))


def test_ties_at_a_threshold_stay_whole_and_both_zeros_are_one():
    logits = torch.full((4, 40), -1e4)
    logits[:, 3:9] = torch.tensor([0.0, -0.0, 0.0, -0.0, 0.0, -0.0])
    positions = torch.arange(4)
    top_ks = torch.full((4,), 2, dtype=torch.int32)
    seen = set()
    for seed in range(4):
        arguments = logits, torch.full((4,), seed), positions, torch.ones(4)
        drawn = draw(sampling, *arguments, top_ks=top_ks)
        assert torch.equal(drawn, naive.sample(*arguments, top_ks=top_ks))
        seen |= set(drawn.tolist())
    assert len(seen) > 3
    assert seen <= {3, 4, 5, 6, 7, 8}


def test_banned_ids_are_never_drawn():
    logits, *rest = inputs(8)
    logits[:, ::2] = -torch.inf
    for filters in (FILTERS["none"], FILTERS["all"]):
        drawn = draw(sampling, logits, *rest, **filters)
        assert (drawn % 2 == 1).all()
        assert torch.equal(drawn, naive.sample(logits, *rest, **filters))


def test_a_seed_draws_the_same_alone_and_in_a_batch():
    arguments = inputs(8)
    filters = FILTERS["all"]
    together = draw(sampling, *arguments, **filters)
    for row in (0, 3, 7):
        one = slice(row, row + 1)
        alone = draw(sampling, *(x[one] for x in arguments), **{name: x[one] for name, x in filters.items()})
        assert torch.equal(alone, together[one])


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.5, 0.2, 0.3]).log().expand(400, 3).contiguous()
    drawn = naive.sample(logits, torch.full((400,), 7), torch.arange(400), torch.ones(400))
    shares = drawn.bincount(minlength=3) / 400
    assert (shares - torch.tensor([0.5, 0.2, 0.3])).abs().max() < 0.06


def test_the_uniform_numbers_are_splitmix64():
    """0xE220A8397B1DCDAF is what SplitMix64 gives first from the state 0."""
    assert _mix(0) == 0xE220A8397B1DCDAF
    assert uniform(0, 5) == (_mix(0xE220A8397B1DCDAF + 5) >> 11) / 2**53
    assert 0 <= uniform(2**64 - 1, 65535) < 1


# What shows each mistake: the filters, and the logits.
MUTATIONS = {
    "bits of negative numbers not turned": ("(bits ^ ((bits >> 31) & 0x7FFFFFFF))", "bits", "top-k", "negative"),
    "minus zero is less": ("(x + 0.0).to(tl.int32", "x.to(tl.int32", "top-k", "zeros"),
    "a digit too low": ("from_here >= target", "from_here > target", "top-k", "normal"),
    "what is above is forgotten": ("above += tl.sum(", "above = tl.sum(", "top-k", "normal"),
    "last digit left out": ("row, num_digits - 1,", "row, num_digits - 2,", "top-k", "adjacent"),
    "top-p of all": ("bits >= tl.load(floors_ptr + row).to(tl.uint32)", "bits >= 0", "both", "normal"),
    "temperature forgotten in top-p": ("/ temperature) if by_mass", ") if by_mass", "top-p", "normal"),
    "temperature forgotten in the draw": (
        "tl.where(kept, tl.exp((x - peak) / temperature)", "tl.where(kept, tl.exp(x - peak)", "none", "normal"
    ),
    "min-p of the wrong temperature": ("peak + temperature * tl.log", "peak + tl.log", "min-p", "normal"),
    "drawn from the first chunk": ("first = found * chunk", "first = 0 * chunk", "none", "normal"),
    "weight before the chunk forgotten": ("chunks < found, masses, 0.0", "chunks < 0, masses, 0.0", "none", "normal"),
    "positions do not count": ("mix(mix(seed) + ", "mix(mix(seed) + 0 * ", "none", "normal"),
    "greedy takes the highest id": (
        "tl.min(tl.where(x == peak, ids, 0x7FFFFFFF)", "tl.max(tl.where(x == peak, ids, 0)", "none", "greedy"
    ),
}  # fmt: skip


def case(filters: str, logits: str) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    num = 8
    values, seeds, positions, _ = inputs(num, spread=1.0, vocabulary=100)
    temperatures = torch.linspace(0.2, 4.0, num)
    if logits == "negative":
        values = -values.abs()
    elif logits == "zeros":
        values = torch.tensor([0.0, -0.0]).repeat(num, 50)
    elif logits == "adjacent":
        values = 1 + torch.arange(100).expand(num, 100) * 2.0**-23
    elif logits == "greedy":
        values, temperatures = values.round(), torch.zeros(num)
    of_filter = {
        "top_ks": torch.arange(1, num + 1, dtype=torch.int32),
        "top_ps": torch.linspace(0.2, 0.9, num),
        "min_ps": torch.linspace(0.5, 0.05, num),
    }
    chosen = {"top-k": ["top_ks"], "top-p": ["top_ps"], "min-p": ["min_ps"], "both": ["top_ks", "top_ps"], "none": []}
    return (values.contiguous(), seeds, positions, temperatures), {name: of_filter[name] for name in chosen[filters]}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_mistake_is_seen(tmp_path: Path, name: str):
    right, wrong, filters, logits = MUTATIONS[name]
    arguments, kept = case(filters, logits)
    drawn = mutated(sampling, tmp_path, right, wrong).sample(*arguments, **kept, chunk=64, step=64)
    assert not torch.equal(drawn, naive.sample(*arguments, **kept))


@pytest.mark.parametrize("logits", ["normal", "negative", "zeros", "adjacent", "greedy"])
def test_without_a_mistake_these_cases_agree(logits: str):
    arguments, kept = case("both" if logits == "normal" else "top-k", logits)
    assert torch.equal(sampling.sample(*arguments, **kept, chunk=64, step=64), naive.sample(*arguments, **kept))


def penalty_inputs() -> tuple[Tensor, ...]:
    logits = inputs(3)[0]
    ids = torch.tensor([[5, 119, 0, -1, -1], [-1, 7, 8, 9, 10], [1, 2, 3, 4, -1]], dtype=torch.int32)
    counts = torch.tensor([[-1, 0, 3, 9, 9], [9, 1, -1, 0, 2], [0, 0, 1, 1, 9]], dtype=torch.int32)
    biases = torch.tensor([[2.0, 0.0, -1.0, 9, 9], [9, 0, -torch.inf, 0.5, 0], [0, 1, 0, 0, 9]])
    return (
        logits, ids, counts, biases,
        torch.tensor([1.3, 0.8, 1.0]), torch.tensor([0.4, 0.0, -1.0]), torch.tensor([0.2, 0.7, 0.0]),
    )  # fmt: skip


def test_penalties():
    (logits, *rest), twin = penalty_inputs(), penalty_inputs()
    before = logits.clone()
    penalties.penalize(logits, *rest)
    naive.penalize(*twin)
    torch.testing.assert_close(logits, twin[0], rtol=1e-6, atol=1e-6)
    assert (logits != before).sum() == 10
    assert float(logits[1, 8]) == -torch.inf


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (
            "values < 0, values * repetition, values / repetition",
            "values < 0, values / repetition, values * repetition",
        ),
        ("tl.where(counts >= 0, repeated", "tl.where(counts > 0, repeated"),
        ("tl.where(counts > 0, once", "tl.where(counts >= 0, once"),
        ("counts.to(tl.float32) * each", "each"),
        ("mask=used)\n\n\ndef", "mask=in_row)\n\n\ndef"),
    ],
)
def test_a_planted_mistake_in_the_penalties_is_seen(tmp_path: Path, right: str, wrong: str):
    (logits, *rest), twin = penalty_inputs(), penalty_inputs()
    wide = torch.cat([torch.ones(3, 1), logits], dim=1)  # what lies before a row is ours to change
    mutated(penalties, tmp_path, right, wrong).penalize(wide[:, 1:], *rest)
    naive.penalize(*twin)
    assert not torch.allclose(wide, torch.cat([torch.ones(3, 1), twin[0]], dim=1), rtol=1e-6, atol=1e-6)
