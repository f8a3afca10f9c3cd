"""Stages as BLOOM-176B had them, and parameters as the model's own cutting leaves them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloom.config import PRESETS, BloomConfig
from bloom.layout import Layout, Stage, stages
from bloom.model import BloomModel
from bloom.parallel import Shard
from bloom.parallelize import cut_to_shard

BLOOM = PRESETS["176b"]
SMALL = BloomConfig(hidden_size=48, n_layer=7, n_head=12, vocab_size=1000)


def test_the_176b_runs_stages_hold_six_of_72_items_each():
    """[embedding, 5 blocks], ten times [6 blocks], [5 blocks, head]: the run's README."""
    parts = stages(BLOOM, 12)
    assert [part.num_layers for part in parts] == [5, *[6] * 10, 5]
    assert [part.index for part in parts if part.has_embedding] == [0]
    assert [part.index for part in parts if part.has_head] == [11]


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 80), st.integers(1, 80))
def test_stages_hold_every_item_once_differ_by_one_at_most_and_have_a_layer(num_layers: int, pp: int):
    pp = min(pp, num_layers)
    parts = stages(BloomConfig(hidden_size=8, n_layer=num_layers, n_head=1), pp)
    items = [part.num_layers + part.has_embedding + part.has_head for part in parts]
    assert len(parts) == pp
    assert sum(items) == num_layers + 2
    assert min(part.num_layers for part in parts) >= 1
    assert max(items) - min(items) <= 1


@pytest.mark.parametrize("name", PRESETS)
def test_one_stage_of_one_rank_has_all_parameters(name: str):
    (stage,) = stages(PRESETS[name], 1)
    assert stage.parameters(PRESETS[name], 1) == PRESETS[name].parameters


def test_several_stages_hold_the_tied_embedding_twice():
    total = sum(part.parameters(BLOOM, 1) for part in stages(BLOOM, 12))
    assert total == BLOOM.parameters + BLOOM.vocab_size * BLOOM.hidden_size


@pytest.mark.parametrize("tp", [1, 2, 3, 4])
@pytest.mark.parametrize("pp", [1, 2, 3, 5])
def test_a_ranks_parameters_are_those_of_the_model_cut_to_its_shard(tp: int, pp: int):
    first = 0
    for stage in stages(SMALL, pp):
        shard = Shard(tp_size=tp, first_layer=first, last_layer=first + stage.num_layers - 1)
        model = cut_to_shard(BloomModel(SMALL, device="meta"), shard)
        assert stage.parameters(SMALL, tp) == sum(parameter.numel() for parameter in model.parameters())
        first += stage.num_layers


def test_a_layout_reads_as_it_is_written():
    layout = Layout.parse("4x12x8")
    assert layout == Layout(tp=4, pp=12, dp=8)
    assert (str(layout), layout.num_ranks) == ("4x12x8", 384)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4x12", "'4x12' is not TPxPPxDP; write three counts"),
        ("axbxc", "not TPxPPxDP"),
        ("0x1x1", "tp=0 .* at least 1"),
    ],
)
def test_a_layout_that_is_none_is_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        Layout.parse(text)


def test_adapters_are_16_h_per_layer_and_rank():
    assert Stage(index=0, num_layers=2, has_embedding=True, has_head=True).adapter_parameters(SMALL, 1, 8) == (
        2 * 16 * SMALL.hidden_size * 8
    )
