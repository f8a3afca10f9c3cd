import math

import pytest

from services.common.errors import InvalidArgument
from services.registry.job_specs import (
    RANGES,
    FineTuneSpec,
    LoraOptions,
    PretrainSpec,
    TrainOptions,
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


@pytest.mark.parametrize(("name", "value"), [("precision", "fp16"), ("optimizer", "sgd")])
def test_an_unknown_choice_is_refused_with_the_known_ones(name, value):
    with pytest.raises(InvalidArgument, match=f"{name}='{value}' is not known; choose .* or .*"):
        check(**{name: value})


def test_layouts_with_data_parallel_ranks_are_taken():
    check(layout="1x1x8")


@pytest.mark.parametrize(("layout", "axis"), [("2x1x1", "tensor parallel TP=2"), ("1x4x2", "pipeline parallel PP=4")])
def test_tensor_and_pipeline_parallel_layouts_are_refused_clearly(layout, axis):
    with pytest.raises(InvalidArgument, match=f"{axis} is not built yet; choose '1x1x"):
        check(layout=layout)


@pytest.mark.parametrize("layout", ["8", "1x1", "0x1x1", "1x1x-1", "axbxc", "1x1x1x1", "1x1x999999"])
def test_a_layout_that_is_no_layout_is_refused(layout):
    with pytest.raises(InvalidArgument, match="is not TPxPPxDP"):
        check(layout=layout)


@pytest.mark.parametrize(("name", "value"), [("rank", 1025), ("alpha", -1.0), ("dropout", 1.0)])
def test_lora_options_have_ranges_too(name, value):
    with pytest.raises(InvalidArgument, match=rf"lora\.{name}="):
        check_lora(LoraOptions(**{name: value}))


@pytest.mark.parametrize(
    "spec",
    [
        PretrainSpec(output_model="m", tokenizer_digest="d", datasets=["a"], config="560m"),
        FineTuneSpec(output_model="m", base="b@1", datasets=["a"], options=TrainOptions(steps=3, layout="1x1x2")),
        FineTuneSpec(output_model="m", base="b@1", datasets=["a"], lora=LoraOptions(rank=4)),
    ],
)
def test_a_spec_is_kept_and_read_back_as_it_was(spec):
    assert spec_from_row(spec_to_row(spec)) == spec
