"""Memory of a rank: the papers' formulas, what the model really keeps, and what every layout obeys."""

from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bloom.alibi import slopes
from bloom.attention import DenseCausalAttention
from bloom.cluster import Cluster
from bloom.config import PRESETS, BloomConfig
from bloom.layout import Layout, Stage, stages
from bloom.memory import (
    BYTES_PER_PARAMETER,
    LOSS_WORKSPACE_BYTES,
    Run,
    activation_bytes,
    kept_bytes,
    loss_bytes,
    peak_memory,
)
from bloom.model import Block

BLOOM = PRESETS["176b"]
BARE = Cluster(runtime_bytes=0)
RUN_176B = Run(layout=Layout(tp=4, pp=12, dp=8), global_batch=2048, micro_batch=2, attention="megatron")


def korthikanti(config: BloomConfig, run: Run) -> float:
    """Table 2 of Korthikanti et al. 2022, of one layer: 16 bits, dropout, scores kept."""
    s, b, h, a, t = run.seq_length, run.micro_batch, config.hidden_size, config.n_head, run.layout.tp
    if run.sequence_parallel:
        return s * b * h / t * (34 + 5 * a * s / h)
    return s * b * h * (10 + 24 / t + 5 * a * s / (h * t))


@pytest.mark.parametrize("tp", [1, 4, 8])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_megatrons_layer_keeps_what_korthikanti_counts(tp: int, sequence_parallel: bool):
    run = replace(RUN_176B, layout=Layout(tp=tp), dropout=True, sequence_parallel=sequence_parallel)
    assert kept_bytes(BLOOM, run) == pytest.approx(korthikanti(BLOOM, run))


def test_a_checkpointed_layer_keeps_2_s_b_h():
    """Korthikanti et al., section 5, between two stages that differ by one layer."""
    shape = {"index": 11, "has_embedding": False, "has_head": False}
    six, five = (
        activation_bytes(BLOOM, RUN_176B, Stage(num_layers=layers, **shape)) for layers in (6, 5)
    )  # fmt: skip
    assert six - five == 2 * 2048 * 2 * BLOOM.hidden_size


def test_the_first_of_p_stages_holds_p_micro_batches_and_the_last_one():
    """1F1B: Narayanan et al. 2021, section 2.2."""
    shape = {"num_layers": 6, "has_embedding": False, "has_head": False}
    sizes = [activation_bytes(BLOOM, RUN_176B, Stage(index=index, **shape)) for index in range(12)]
    growth = {before - after for before, after in pairwise(sizes)}
    assert growth == {7 * RUN_176B.layer_input_bytes(BLOOM)}  # six layers' inputs and the output that was sent


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("seq_length", [32, 256])
def test_a_dense_layer_keeps_what_autograd_saves(precision: str, dtype: torch.dtype, seq_length: int):
    config = BloomConfig(hidden_size=128, n_layer=1, n_head=4, vocab_size=128)
    run = Run(layout=Layout(), global_batch=2, micro_batch=2, seq_length=seq_length, precision=precision)
    block = Block(config, 0, device=None, dtype=dtype)
    attend = DenseCausalAttention(slopes(4), 2, seq_length)
    x = torch.randn(2 * seq_length, 128, dtype=dtype, requires_grad=True)
    given_storages = {tensor.untyped_storage().data_ptr() for tensor in (*block.parameters(), attend._bias)}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given_storages:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = block(x, attend)
    assert sum(kept.values()) == pytest.approx(kept_bytes(config, run), rel=0.02)  # LayerNorms' statistics on top
    assert out.requires_grad


def test_bytes_per_parameter_are_zeros():
    """Rajbhandari et al. 2020: 2 + 2 + 12 with 16 bits; BLOOM-176B added 4, in which gradients are summed."""
    assert sum(asdict(BYTES_PER_PARAMETER["fp16"]).values()) == 16
    assert sum(asdict(BYTES_PER_PARAMETER["bf16"]).values()) == 20


def test_zero_1_shares_out_the_optimizer_alone():
    run = Run(layout=Layout(), global_batch=8, checkpointing=False)
    one, four = (
        peak_memory(PRESETS["560m"], replace(run, layout=Layout(dp=dp)), BARE)[1] for dp in (1, 4)
    )  # fmt: skip
    assert one.optimizer == 12 * PRESETS["560m"].parameters == 4 * four.optimizer
    assert (one.weights, one.gradients) == (four.weights, four.gradients)


def test_the_loss_never_holds_the_whole_logits():
    run = Run(layout=Layout(), global_batch=4, micro_batch=4)
    (stage,) = stages(PRESETS["560m"], 1)
    head_gradient = 2 * 250_880 * 1024
    assert loss_bytes(PRESETS["560m"], run, stage) == LOSS_WORKSPACE_BYTES + head_gradient < 4 * 2048 * 250_880 * 4


def test_an_update_counts_where_it_takes_more_than_the_backward_pass_did():
    runs = (Run(layout=Layout(dp=dp), global_batch=64, precision="fp16") for dp in (1, 16))
    small, large = (peak_memory(PRESETS["560m"], run, BARE)[1] for run in runs)
    assert (small.activations, small.loss) == (0, 0)
    assert small.update == 8 * PRESETS["560m"].parameters
    assert large.update == 0 < large.activations


def test_adapters_need_no_gradient_and_no_optimizer_for_the_weights_they_leave():
    run = Run(layout=Layout(), global_batch=1, precision="fp32", lora_rank=8)
    _, memory = peak_memory(PRESETS["560m"], run, BARE)
    adapters = 16 * 1024 * 8 * 24
    assert memory.weights == 4 * (PRESETS["560m"].parameters + adapters)
    assert (memory.gradients, memory.optimizer) == (4 * adapters, 8 * adapters)  # without ZeRO: no master copy


def test_layers_in_nf4_take_four_and_a_half_bits_and_are_unpacked_one_at_a_time():
    run = Run(layout=Layout(), global_batch=1, lora_rank=8)
    _, whole = peak_memory(PRESETS["560m"], run, BARE)
    _, in_nf4 = peak_memory(PRESETS["560m"], replace(run, base_in_nf4=True), BARE)
    assert whole.weights - in_nf4.weights == 24 * 12 * 1024**2 * (16 - 4.5) / 8
    assert in_nf4.activations - whole.activations == 4 * 1024**2 * 2
    assert in_nf4.optimizer == whole.optimizer


def test_the_176b_runs_ranks_held_what_nvidia_smi_showed_less_a_fifth():
    """59 GiB with micro-batch 2, 73 with 4 and 64 heads, 40 at TP 8 x DP 4: chronicles-prequel, 02-28."""
    shown = {("4x12x8", 2, 112): 59, ("4x12x8", 4, 64): 73, ("8x12x4", 2, 64): 40}
    for (layout, micro_batch, heads), gib in shown.items():
        config = replace(BLOOM, n_head=heads)
        run = replace(RUN_176B, layout=Layout.parse(layout), micro_batch=micro_batch)
        counted = peak_memory(config, run, Cluster())[1].total
        assert 0.78 < counted / (gib << 30) < 0.86


CONFIGS = st.builds(
    lambda heads, head_dim, layers, rows: BloomConfig(
        hidden_size=heads * head_dim, n_layer=layers, n_head=heads, vocab_size=rows
    ),
    st.sampled_from([4, 8, 12]),
    st.sampled_from([8, 64]),
    st.integers(1, 30),
    st.integers(100, 300_000),
)


@st.composite
def runs(draw, max_pp: int = 1) -> Run:
    layout = Layout(tp=draw(st.sampled_from([1, 2, 4])), pp=draw(st.integers(1, max_pp)), dp=draw(st.integers(1, 16)))
    return Run(
        layout=layout,
        global_batch=draw(st.integers(1, 512)),
        micro_batch=draw(st.integers(1, 8)),
        seq_length=draw(st.integers(1, 4096)),
        precision=draw(st.sampled_from(["bf16", "fp16", "fp32"])),
        checkpointing=draw(st.booleans()),
        sequence_parallel=draw(st.booleans()),
        dropout=draw(st.booleans()),
        attention=draw(st.sampled_from(["dense", "megatron", "fused"])),
    )


@st.composite
def configs_and_runs(draw) -> tuple[BloomConfig, Run]:
    config = draw(CONFIGS)
    return config, draw(runs(max_pp=config.n_layer))


@settings(deadline=None, derandomize=True)
@given(configs_and_runs())
def test_the_kinds_sum_to_the_total(drawn: tuple[BloomConfig, Run]):
    _, memory = peak_memory(*drawn, Cluster(runtime_bytes=7))
    assert sum(asdict(memory).values()) == memory.total
    assert min(asdict(memory).values()) >= 0


@settings(deadline=None, derandomize=True)
@given(configs_and_runs(), st.integers(1, 4))
def test_more_dp_never_needs_more_memory_per_rank(drawn: tuple[BloomConfig, Run], times: int):
    config, run = drawn
    more = replace(run, layout=replace(run.layout, dp=run.layout.dp * times))
    few, many = (peak_memory(config, each, BARE)[1].total for each in (run, more))
    assert many <= few


@settings(deadline=None, derandomize=True)
@given(configs_and_runs())
def test_sequence_parallelism_fused_attention_and_no_dropout_never_need_more(drawn: tuple[BloomConfig, Run]):
    config, run = drawn
    total = peak_memory(config, run, BARE)[1].total
    lighter_runs = [{"sequence_parallel": True}, {"dropout": False}]
    if run.attention == "dense":  # Megatron's keeps no gathered inputs
        lighter_runs.append({"attention": "fused"})
    for lighter in lighter_runs:
        assert peak_memory(config, replace(run, **lighter), BARE)[1].total <= total


@settings(deadline=None, derandomize=True)
@given(configs_and_runs())
def test_checkpointing_never_needs_more_where_a_stage_has_several_layers(drawn: tuple[BloomConfig, Run]):
    config, run = drawn
    if min(stage.num_layers for stage in stages(config, run.layout.pp)) < 2:
        return
    kept, recomputed = (
        peak_memory(config, replace(run, checkpointing=checkpointing), BARE)[1].total for checkpointing in (False, True)
    )
    assert recomputed <= kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_batch": 0}, "global_batch=0 trains nothing; use at least 1"),
        ({"micro_batch": 0}, "micro_batch=0"),
        ({"seq_length": 0}, "seq_length=0"),
        ({"precision": "fp8"}, "precision='fp8' is not known; choose bf16, fp16, fp32"),
        ({"attention": "flash"}, "attention='flash' is not known; choose dense, megatron or fused"),
        ({"lora_rank": -1}, "lora_rank=-1 is below zero"),
        ({"base_in_nf4": True}, "set a lora_rank"),
    ],
)
def test_an_impossible_run_is_named_with_the_remedy(change: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        replace(RUN_176B, **change)
