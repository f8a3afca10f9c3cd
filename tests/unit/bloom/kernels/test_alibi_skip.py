"""The bound of what a block can add, and what is left out by it. The kernels follow in interpreted_alibi_skip.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bloom.alibi import slopes
from bloom.kernels import naive
from tests.support.alibi_skip import SkipCase, dropped_share, kept_of


@settings(max_examples=60, deadline=None)
@given(
    context_len=st.integers(1, 300),
    norm=st.floats(0.01, 60.0),
    tolerance=st.sampled_from([2.0**-24, 2.0**-9, 0.3]),
    seed=st.integers(0, 1000),
)
def test_the_mass_left_out_is_within_the_tolerance_and_so_is_the_output(
    context_len: int, norm: float, tolerance: float, seed: int
):
    case = SkipCase.random(n_head=4, context_len=context_len, norm=norm, seed=seed)
    kept = kept_of(case, tolerance)
    share = dropped_share(case, kept)  # (N,), fp64
    assert (share <= tolerance).all()
    exact, skipping = case.attend(torch.ones_like(kept)), case.attend(kept)  # fp64
    largest = case.values().norm(dim=-1).amax(dim=0)  # (N,)
    assert ((skipping - exact).norm(dim=-1) <= 2 * share * largest + 1e-12).all()


def test_steep_heads_of_long_contexts_read_little():
    kept = kept_of(SkipCase.random(n_head=16, context_len=2048, norm=3.0), 2.0**-9)
    assert kept[0].sum() <= 3  # slope 0.7
    assert kept[15].all()  # slope 2^-8
    counts = kept.sum(dim=-1)
    assert (counts.diff() >= 0).all()


def test_far_keys_of_huge_norm_are_read():
    case = SkipCase.random(n_head=4, context_len=640, norm=3.0)
    q = case.q[0]  # (N, D)
    case.keys()[5, 0] = 2000 * q[0] / q[0].norm()  # its score is far above all others, slope and all
    kept = kept_of(case.with_norms(), 2.0**-9)
    assert kept[0, 0]
    assert not kept[0, 1:20].any()
    assert dropped_share(case, kept).max() <= 2.0**-9


def test_a_huge_norm_in_one_head_keeps_nothing_in_another():
    case = SkipCase.random(n_head=4, context_len=640, norm=3.0)
    before = kept_of(case, 2.0**-9)
    case.keys()[5, 2] *= 1e4
    after = kept_of(case.with_norms(), 2.0**-9)
    assert torch.equal(before[[0, 1, 3]], after[[0, 1, 3]])
    assert after[2, 0]


def test_a_query_that_dislikes_itself_reads_further():
    """The bound is against the own key's score: the lower that is, the less may be left out."""
    case = SkipCase.random(n_head=4, context_len=640, norm=3.0)
    before = kept_of(case, 2.0**-9).sum(dim=-1)
    q = case.q[0]
    case.keys()[-1] = -20 * q / q.norm(dim=-1, keepdim=True)
    after = kept_of(case.with_norms(), 2.0**-9)
    assert (after.sum(dim=-1) > before)[:2].all()
    assert (dropped_share(case, after) <= 2.0**-9).all()


def test_many_blocks_that_could_each_be_left_out_are_not_all():
    """Each has half the tolerance."""
    q, tolerance = torch.zeros(1, 1, 8), 2.0**-9
    norms = torch.zeros(1, 1, 40)
    far = float(-torch.tensor(tolerance / 2 / 16).log())  # exp(-far) * 16 = tolerance / 2
    kept = naive.kept_blocks(
        q, q, norms, torch.tensor([639]), torch.tensor([far / 600]), block_size=16, tolerance=tolerance
    )
    # Block 1 ends 600 tokens back. Block 0 has less, so both fit; block 2 has more, and the sum is above.
    assert kept[0, 0, :3].tolist() == [False, False, True]
    assert kept[0, 0, 3:].all()


def test_tolerance_0_and_unknown_norms_leave_nothing_out():
    case = SkipCase.random(n_head=4, context_len=640, norm=3.0)
    assert kept_of(case, 0.0).all()
    case.key_norms.fill_(torch.nan)
    assert kept_of(case, 2.0**-9).all()


@pytest.mark.parametrize("tolerance", [2.0**-9, 1.0])
def test_the_own_block_is_always_read(tolerance: float):
    for context_len in (1, 15, 16, 17, 640):
        case = SkipCase.random(n_head=4, context_len=context_len, norm=1e-3)
        assert kept_of(case, tolerance)[:, -1].all()


MUTATIONS: dict[str, dict[str, object]] = {
    "distance of the farthest key of a block": {"slope_factor": 1.0, "shift": 15.0},
    "norms of half the keys": {"norm_factor": 0.5},
    "a slope too steep": {"slope_factor": 2.0},
    "own score forgotten": {"own": False},
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_mistake_in_the_bound_breaks_it(name: str):
    """The keys of an adversary: all as long as their block's norm says, far ones along the query, near ones against."""
    mistake = {"slope_factor": 1.0, "shift": 0.0, "norm_factor": 1.0, "own": True} | MUTATIONS[name]
    worst = 0.0
    for norm in torch.linspace(0.1, 10.0, 40).tolist():
        case = SkipCase.adversarial(n_head=4, context_len=640, norm=norm)
        kept = naive.kept_blocks(
            case.q,
            _own(case) if mistake["own"] else torch.zeros_like(case.q),
            case.key_norms[None] * mistake["norm_factor"],
            torch.tensor([case.context_len - 1 + int(mistake["shift"])]),
            case.slopes * mistake["slope_factor"],
            block_size=16,
            tolerance=2.0**-9,
        )[0, :, : case.key_norms.shape[1]]
        assert dropped_share(case, kept_of(case, 2.0**-9)).max() <= 2.0**-9  # without the mistake
        worst = max(worst, float(dropped_share(case, kept).max()))
    assert worst > 2.0**-9


def _own(case: SkipCase) -> Tensor:
    return case.keys()[-1][None]


def test_slopes_of_cases_are_blooms():
    assert SkipCase.random(n_head=4, context_len=3, norm=1.0).slopes.tolist() == list(slopes(4))
