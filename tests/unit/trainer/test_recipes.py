"""The published recipes are requests that the contract understands, with the published values."""

from pathlib import Path

import pytest
import yaml
from anthesis.v1 import job_pb2
from google.protobuf import json_format

from bloom.config import PRESETS
from bloom.parallel import Shard
from services.common.settings import ROOT
from services.trainer.registry_client import train_config

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def parsed(path: Path) -> job_pb2.CreateJobRequest:
    return json_format.ParseDict(yaml.safe_load(path.read_text()), job_pb2.CreateJobRequest())


def options(path: Path) -> job_pb2.TrainOptions:
    request = parsed(path)
    return getattr(request, request.WhichOneof("spec")).options


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_job_request(path):
    found = options(path)
    config = train_config(found, None, {})
    assert config.sequence_length == 2048
    layout = config.layout
    Shard.of(PRESETS[path.stem.split("-")[1]], tp_size=layout.tp, pp_size=layout.pp)  # fits the model


def test_the_176b_recipe_takes_the_steps_and_has_the_learning_rates_of_the_published_run():
    config = train_config(options(ROOT / "recipes" / "bloom-176b.yaml"), None, {})
    sizes = {config.samples_before(step + 1) - config.samples_before(step) for step in range(12_658)}
    assert sizes == set(range(192, 2048, 16))
    assert config.num_micro_batches(12_658) == 128
    seen = {12_658: 9_765_808, 12_695: 9_841_584, 85_376: 158_692_272}
    assert {step: config.samples_before(step) for step in seen} == seen
    assert config.steps == 115_311
    schedule = config.schedule(config.steps)
    rates = {12_695: 5.969e-05, 85_376: 1.15e-05}
    for step, rate in rates.items():
        assert float(f"{config.learning_rate * schedule.at(config.samples_before(step)):.3e}") == rate


def test_every_preset_has_a_recipe_with_its_batch():
    batches = {}
    for name in PRESETS:
        found = options(ROOT / "recipes" / f"bloom-{name}.yaml")
        dp = int(found.layout.split("x")[2])
        batches[name] = found.micro_batch * found.gradient_accumulation * dp
    assert batches == {"560m": 256, "1b1": 256, "1b7": 512, "3b": 512, "7b1": 512, "176b": 2048}
