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


def test_every_preset_has_a_recipe_with_its_batch():
    batches = {}
    for name in PRESETS:
        found = options(ROOT / "recipes" / f"bloom-{name}.yaml")
        dp = int(found.layout.split("x")[2])
        batches[name] = found.micro_batch * found.gradient_accumulation * dp
    assert batches == {"560m": 256, "1b1": 256, "1b7": 512, "3b": 512, "7b1": 512, "176b": 2048}
