import math
import re
from dataclasses import replace

import pytest

from bloom.config import PRESETS, BloomConfig
from services.common.errors import InvalidArgument
from services.registry.job_specs import (
    RANGES,
    FineTuneSpec,
    LoraOptions,
    PretrainSpec,
    TrainOptions,
    check_layout_fits,
    check_lora,
    check_options,
    spec_from_row,
    spec_to_row,
)


def check(**options):
    check_options(TrainOptions(**({"steps": 100} | options)))


def test_the_defaults_are_in_range():
    check()
    check_lora(LoraOptions())


@pytest.mark.parametrize("name", RANGES)
def test_a_value_outside_its_range_is_named_with_the_range(name):
    with pytest.raises(InvalidArgument, match=rf"^{name}=-1 is out of range; choose a value in [\[(].*[\])]$"):
        check(**{name: -1})


@pytest.mark.parametrize("name", [name for name in RANGES if name not in ("steps", "warmup_steps")])
def test_no_number_is_no_value(name):
    with pytest.raises(InvalidArgument, match=f"{name}=nan is out of range"):
        check(**{name: math.nan})


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("learning_rate", 1.0, 0.0),
        ("sequence_length", 16, 15),
        ("sequence_length", 65536, 65537),
        ("weight_decay", 0.0, 1.5),
        ("dropout", 0.0, 1.0),
        ("bpe_dropout", 0.9, 1.0),
        ("clip_grad_norm", 0.0, math.inf),
        ("micro_batch", 1, 0),
        ("checkpoint_every_steps", 1, 0),
    ],
)
def test_the_ends_of_a_range_are_in_or_out_as_the_contract_says(name, inside, outside):
    check(**{name: inside})
    with pytest.raises(InvalidArgument, match=name):
        check(**{name: outside})


def test_the_length_is_given_in_steps_or_in_epochs():
    check_options(TrainOptions(epochs=2.5))
    with pytest.raises(InvalidArgument, match="got neither"):
        check_options(TrainOptions())
    with pytest.raises(InvalidArgument, match="got both"):
        check_options(TrainOptions(steps=1, epochs=1))


def test_the_floor_of_the_learning_rate_is_not_above_it():
    with pytest.raises(InvalidArgument, match=r"min_learning_rate=0\.01 is above learning_rate=0\.001"):
        check(learning_rate=1e-3, min_learning_rate=1e-2)


def test_warm_up_is_not_longer_than_the_run():
    with pytest.raises(InvalidArgument, match="warmup_steps=101 is above steps=100"):
        check(warmup_steps=101)


@pytest.mark.parametrize(("name", "value"), [("precision", "fp8"), ("optimizer", "sgd"), ("rollback_on", "loss")])
def test_an_unknown_choice_is_refused_with_the_known_ones(name, value):
    with pytest.raises(InvalidArgument, match=f"{name}='{value}' is not known; choose .* or .*"):
        check(**{name: value})


def test_checkpoints_kept_for_good_are_among_those_that_are_written():
    check(keep_every_steps=0)
    check(keep_every_steps=300)
    check(keep_every_steps=50, checkpoint_every_steps=25)
    with pytest.raises(InvalidArgument, match="keep_every_steps=250 is no multiple of checkpoint_every_steps=100; "):
        check(keep_every_steps=250)
    with pytest.raises(InvalidArgument, match="choose a multiple, such as 30 or 60"):
        check(keep_every_steps=20, checkpoint_every_steps=30)


def test_who_wants_to_go_back_keeps_more_than_the_newest_checkpoint():
    check(keep_last=1)
    check(keep_last=2, rollback_on="spike")
    with pytest.raises(InvalidArgument, match=r"keep_last=1 with rollback_on='nan': .* choose 2 or more"):
        check(keep_last=1, rollback_on="nan")


@pytest.mark.parametrize("layout", ["", "1x1x8", "4x12x8"])
def test_layouts_are_taken(layout):
    check(layout=layout)
    spec = PretrainSpec(
        output_model="m", tokenizer_digest="t", datasets=["a"], config="176b", options=TrainOptions(layout=layout)
    )
    check_layout_fits(spec, PRESETS["176b"])


@pytest.mark.parametrize(
    ("options", "lora", "says"),
    [
        ({"layout": "3x1x1"}, None, "tp=3 does not divide 16 heads; choose 1, 2, 4, 8 or 16"),
        ({"layout": "1x25x1"}, None, "pp=25 stages cannot share 24 layers; choose 1 to 24"),
        ({"layout": "2x3x4", "optimizer": "muon"}, None, "muon needs whole matrices; choose adamw or '1x3x8'"),
    ],
)
def test_a_layout_that_cannot_divide_the_model_is_refused_with_one_that_can(options, lora, says):
    spec = FineTuneSpec(
        output_model="m", base="b@1", datasets=["a"], options=TrainOptions(steps=3, **options), lora=lora
    )
    with pytest.raises(InvalidArgument, match=re.escape(says)):
        check_layout_fits(spec, PRESETS["560m"])


def test_adapters_beside_4_bits_go_where_every_rank_rounds_as_one_would():
    def check_nf4(config: BloomConfig = PRESETS["560m"], **options: object) -> None:
        spec = FineTuneSpec(
            output_model="m",
            base="b@1",
            datasets=["a"],
            options=TrainOptions(steps=3, **options),
            lora=LoraOptions(base_weights="nf4"),
        )
        check_layout_fits(spec, config)

    check_nf4(layout="16x2x2", zero_stage=2)  # 64 columns
    with pytest.raises(InvalidArgument, match=r"lora: zero_stage=3 with base_weights=nf4: .* use zero_stage 1 or 2"):
        check_nf4(zero_stage=3)
    with pytest.raises(InvalidArgument, match="rows of 32 columns are no multiple of 64; use a smaller tp"):
        check_nf4(layout="32x1x1", config=replace(PRESETS["560m"], n_head=32))


def test_adapters_go_with_every_layout_that_divides_the_model():
    options = TrainOptions(steps=3, layout="4x6x2")
    spec = FineTuneSpec(output_model="m", base="b@1", datasets=["a"], options=options, lora=LoraOptions())
    check_layout_fits(spec, PRESETS["560m"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"zero_stage": 4}, "zero_stage=4 is not known; choose 1, 2 or 3"),
        ({"zero_stage": 2, "layout": "1x2x2"}, "stages need zero_stage=1 without offload; set these, or use 1x1x4"),
        ({"zero_stage": 3, "optimizer": "muon"}, "use adamw, or zero_stage=2"),
        ({"offload": "parameters"}, "set zero_stage=3, or offload=optimizer"),
    ],
)
def test_what_replicas_cannot_divide_is_refused_with_the_remedy(options, says):
    with pytest.raises(InvalidArgument, match=re.escape(says)):
        check(**options)


def test_stages_of_zero_are_taken():
    check(zero_stage=3, offload="parameters", layout="2x1x4")
    check(zero_stage=2, optimizer="muon")


@pytest.mark.parametrize("layout", ["8", "1x1", "0x1x1", "1x1x-1", "axbxc", "1x1x1x1", "1x1x999999"])
def test_a_layout_that_is_no_layout_is_refused(layout):
    with pytest.raises(InvalidArgument, match="is not TPxPPxDP"):
        check(layout=layout)


@pytest.mark.parametrize(
    ("name", "value"), [("rank", 1025), ("alpha", -1.0), ("dropout", 1.0), ("base_weights", "int4")]
)
def test_lora_options_have_ranges_too(name, value):
    with pytest.raises(InvalidArgument, match=rf"lora\.{name}="):
        check_lora(LoraOptions(**{name: value}))


@pytest.mark.parametrize(
    "spec",
    [
        PretrainSpec(output_model="m", tokenizer_digest="d", datasets=["a"], config="560m"),
        FineTuneSpec(output_model="m", base="b@1", datasets=["a"], options=TrainOptions(steps=3, layout="1x1x2")),
        FineTuneSpec(output_model="m", base="b@1", datasets=["a"], lora=LoraOptions(rank=4)),
        FineTuneSpec(output_model="m", base="b@1", datasets=["a"], validation_datasets=["v"]),
    ],
)
def test_a_spec_is_kept_and_read_back_as_it_was(spec):
    assert spec_from_row(spec_to_row(spec)) == spec
