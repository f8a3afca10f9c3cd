"""Options as they arrive: what was set is kept, zero too; the rest gets its default."""

import pytest
from anthesis.v1 import job_pb2, registry_pb2

from bloom.layout import Layout
from services.common.settings import Platform
from services.trainer.config import LoraConfig
from services.trainer.failure import JobFailure
from services.trainer.registry_client import run_spec, train_config


def test_unset_options_take_their_defaults():
    config = train_config(job_pb2.TrainOptions(steps=10), None, {"learning_rate": 2e-5})
    assert (config.learning_rate, config.min_learning_rate) == (pytest.approx(2e-5), pytest.approx(2e-6))
    assert (config.precision, config.optimizer, config.layout) == ("bf16", "adamw", Layout())
    assert config.schedule(200).warmup == 10 * config.global_batch


def test_options_set_to_zero_stay_zero():
    options = job_pb2.TrainOptions(epochs=1, min_learning_rate=0, warmup_steps=0, clip_grad_norm=0, layout="1x1x2")
    config = train_config(options, None, {})
    assert (config.min_learning_rate, config.schedule(100).warmup, config.clip_grad_norm) == (0, 0, 0)
    assert config.layout.dp == 2


def test_lora_takes_its_defaults():
    assert train_config(job_pb2.TrainOptions(steps=1), job_pb2.LoraOptions(rank=4), {}).lora == LoraConfig(rank=4)


def test_a_layout_is_three_counts():
    layout = train_config(job_pb2.TrainOptions(steps=1, layout="2x3x4"), None, {}).layout
    assert (layout, layout.num_ranks, str(layout)) == (Layout(tp=2, pp=3, dp=4), 24, "2x3x4")


@pytest.mark.parametrize("layout", ["1x1x0", "1x1", "axbxc"])
def test_a_layout_that_is_none_is_refused(layout):
    with pytest.raises(JobFailure) as refused:
        train_config(job_pb2.TrainOptions(steps=1, layout=layout), None, {})
    assert refused.value.code == "BAD_LAYOUT"


def test_validation_datasets_are_kept_from_those_that_are_trained_on():
    form = registry_pb2.DATASET_FORMAT_TEXT
    options = job_pb2.TrainOptions(steps=1, validate_every_steps=7)
    spec = job_pb2.PretrainSpec(datasets=["texts"], validation_datasets=["held-out"], options=options)
    response = job_pb2.AcquireLeaseResponse(
        job=job_pb2.Job(pretrain=spec),
        datasets=[registry_pb2.Dataset(name=name, format=form) for name in ("texts", "held-out")],
    )
    found = run_spec(response, Platform.from_env())
    assert [dataset.name for dataset in found.datasets] == ["texts"]
    assert [dataset.name for dataset in found.validation] == ["held-out"]
    assert found.config.validate_every_steps == 7
