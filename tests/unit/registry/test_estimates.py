"""What a job is told it will cost: the planner's figures for the trainer's defaults."""

import json
from dataclasses import fields, replace

import pytest
from anthesis.v1 import job_pb2

from bloom.cluster import named_cluster
from bloom.config import PRESETS
from bloom.layout import Layout
from bloom.memory import Run
from bloom.plan import plan
from services.registry import estimates
from services.registry.config import RegistryConfig
from services.registry.estimates import TrainingCluster, estimate
from services.registry.job_specs import CHECKPOINT_EVERY_STEPS, FineTuneSpec, LoraOptions, PretrainSpec, TrainOptions
from services.registry.rpc import messages
from services.trainer.config import LoraConfig, TrainConfig

SMALL = PRESETS["560m"]
LAPTOP = TrainingCluster("laptop")


def pretrain(**options) -> PretrainSpec:
    return PretrainSpec(
        output_model="m", tokenizer_digest="", datasets=["d"], config="560m", options=TrainOptions(**options)
    )


def test_a_job_gets_the_planners_figures():
    found = estimate(pretrain(steps=100, layout="1x1x2", micro_batch=2, sequence_length=128), SMALL, 0, LAPTOP)
    run = Run(layout=Layout(dp=2), global_batch=4, micro_batch=2, seq_length=128, checkpointing=False)
    figures = plan(SMALL, run, named_cluster("laptop", 2), tokens=100 * 4 * 128)
    assert found["seconds"] == figures.seconds > 0
    assert found["step_seconds"] == figures.step_seconds
    assert found["memory"]["total_bytes"] == figures.memory_bytes
    assert found["checkpoint_bytes"] == 14 * SMALL.parameters
    assert (found["num_steps"], found["num_gpus"], found["steps_from_bytes"]) == (100, 2, False)


def test_the_defaults_are_the_trainers():
    trainer = TrainConfig(steps=1)
    assert trainer.sequence_length == estimates.SEQUENCE_LENGTH
    assert trainer.micro_batch == estimates.MICRO_BATCH
    assert trainer.gradient_accumulation == estimates.GRADIENT_ACCUMULATION
    assert trainer.checkpoint_every_steps == CHECKPOINT_EVERY_STEPS
    assert LoraConfig().rank == estimates.LORA_RANK
    assert str(Layout(**{axis.name: getattr(trainer.layout, axis.name) for axis in fields(Layout)})) == "1x1x1"


def test_epochs_are_counted_in_the_datas_bytes():
    found = estimate(pretrain(epochs=2.0, micro_batch=1, sequence_length=100), SMALL, 400_000, LAPTOP)
    assert found["steps_from_bytes"]
    assert found["num_steps"] == 2 * 400_000 / 4 / 100


def test_adapters_need_less_memory_than_all_weights():
    spec = FineTuneSpec(output_model="m", base="b", datasets=["d"], options=TrainOptions(steps=1, micro_batch=1))
    everything = estimate(spec, SMALL, 0, LAPTOP)["memory"]
    adapters = estimate(replace(spec, lora=LoraOptions()), SMALL, 0, LAPTOP)["memory"]
    assert adapters["optimizer_bytes"] == 12 * 16 * 1024 * 8 * 24 < everything["optimizer_bytes"]


def test_what_cannot_be_laid_out_says_why_and_nothing_else():
    found = estimate(pretrain(steps=1, layout="1x1x64"), SMALL, 0, TrainingCluster("jean-zay", 8))
    assert found == {
        "cluster": "jean-zay",
        "layout": "1x1x64",
        "shortage": "layout 1x1x64 takes 64 GPUs of 8; lower tp, pp or dp",
    }


def test_the_layouts_offered_are_few_and_those_that_fit_first():
    found = estimate(
        pretrain(steps=1, micro_batch=1, gradient_accumulation=64), SMALL, 0, TrainingCluster("jean-zay", 64)
    )
    reasons = [one["reason"] == "" for one in found["layouts"]]
    assert 1 <= len(reasons) <= 10
    assert reasons == sorted(reasons, reverse=True)


@pytest.mark.parametrize("layout", ["1x1x1", "1x1x99991"])
def test_the_largest_job_that_the_registry_accepts_fits_into_a_message(layout: str):
    options = {"micro_batch": 65_536, "gradient_accumulation": 65_536, "sequence_length": 65_536, "layout": layout}
    for length in ({"steps": 100_000_000}, {"epochs": 100_000.0}):
        found = estimate(pretrain(**options, **length), PRESETS["176b"], 2**50, LAPTOP)
        message = job_pb2.JobEstimate(**found)
        assert message.shortage
        assert json.loads(json.dumps(found)) == found


async def test_a_job_carries_its_estimate(registry):
    job = await registry.submit()
    message = messages.job(await registry.jobs.get(job.id)).estimate
    assert message.layout == "1x1x1"
    assert message.num_steps == 10
    assert message.memory.total_bytes == sum(
        getattr(message.memory, field.name) for field in message.memory.DESCRIPTOR.fields if field.name != "total_bytes"
    )
    assert message.seconds > 0
    assert message.checkpoint_bytes > 0
    assert message.layouts[0].layout == "1x1x1"


async def test_a_fine_tune_is_estimated_from_its_bases_shape(registry):
    job = await registry.submit(spec=await registry.fine_tune_spec())
    base = await registry.aliases.resolve("seedling@1")
    assert messages.job(job).estimate.checkpoint_bytes == 14 * base.parameters


async def test_a_job_of_an_older_release_has_none(registry):
    job = await registry.submit()
    job.estimate = None
    assert not messages.job(job).HasField("estimate")


def test_the_cluster_is_read_from_the_environment(tmp_path):
    env = {"ANTHESIS_DATA": str(tmp_path), "ANTHESIS_KEY_PEPPER": "p", "ANTHESIS_TRAINING_CLUSTER": "jean-zay:64"}
    config = RegistryConfig.from_env(env)
    assert config.training_cluster == TrainingCluster("jean-zay", 64)


@pytest.mark.parametrize("text", ["moon", "jean-zay:0", "jean-zay:many", "", ":4"])
def test_an_unknown_cluster_is_refused_with_the_choices(text: str):
    with pytest.raises(
        ValueError, match="is not NAME or NAME:GPUS with a NAME of jean-zay, h100, laptop, this-machine"
    ):
        TrainingCluster.parse(text)
