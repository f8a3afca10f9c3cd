"""`anthesis reproduce` against real jobs: bitwise equal, or by how much not, and what was otherwise."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from anthesis.v1 import job_pb2

from services.common.settings import ROOT
from tests.support.registry_server import platform_env
from tests.support.training import MODEL, multitask_rows, text_rows
from tests.support.training_platform import TrainingPlatform

pytestmark = pytest.mark.timeout(900)
OPTIONS = job_pb2.TrainOptions(
    steps=8, sequence_length=32, micro_batch=4, precision="bf16", dropout=0.1, bpe_dropout=0.1, checkpoint_every_steps=4
)


@pytest.fixture(scope="module")
def platform() -> Iterator[TrainingPlatform]:
    folder = Path(tempfile.mkdtemp(prefix="an-"))
    with TrainingPlatform(folder) as platform:
        platform.dataset("texts", text_rows(60))
        platform.dataset("tasks", multitask_rows(60))
        yield platform
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def pretrained(platform: TrainingPlatform) -> str:
    """A version trained with dropout, from texts that BPE-dropout encodes."""
    spec = job_pb2.PretrainSpec(
        output_model="seedling",
        tokenizer_digest=platform.tokenizer_digest,
        datasets=["texts"],
        config=json.dumps(MODEL),
        options=OPTIONS,
    )
    return platform.wait_until_ended(platform.submit(spec), timeout_s=600).model_version


def anthesis(platform: TrainingPlatform, *args: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in platform_env(platform.settings).items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "anthesis.cli", *args]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_a_version_trained_with_dropout_is_reproduced_to_the_last_bit(platform, pretrained):
    done = anthesis(platform, "reproduce", pretrained)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seedling-reproduced@1 is bitwise equal to seedling@1\nlosses of 8 steps are equal\n" in done.stdout
    shown = json.loads(anthesis(platform, "models", "show", pretrained, "--json").stdout)
    assert shown["model"]["latest_version"] == 1  # the model's versions are as they were
    assert shown["training"]["recipe"]["seed"] == 42
    assert shown["training"]["attempts"][0]["layout"] == "1x1x1"


def test_another_seed_is_not_equal_by_so_much_and_is_said_to_be_what_was_otherwise(platform, pretrained):
    done = anthesis(platform, "reproduce", pretrained, "-o", "seed=43", "--output", "other", "--json")
    assert done.returncode == 3, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["version"], found["other"], found["equal"]) == ("seedling@1", "other@1", False)
    worst = found["tensors"][0]
    assert worst["relative_l2"] > 0.1
    assert 0 < worst["num_different"] <= worst["num_values"]
    assert found["losses"]["first_different"] == 1
    assert found["losses"]["max_abs"] > 0
    # The tokens are other ones too: the seed orders the rows.
    names = {difference["name"] for difference in found["differences"]}
    assert names == {"recipe.seed", "tokens"}


@pytest.mark.long
@pytest.mark.parametrize(
    "options", [{"precision": "fp32", "layout": "2x1x1"}, {"layout": "1x2x1"}, {"layout": "1x1x2"}]
)
def test_other_layouts_are_reproduced_to_the_last_bit(platform, options):
    merged = job_pb2.TrainOptions()
    merged.CopyFrom(OPTIONS)
    merged.MergeFrom(job_pb2.TrainOptions(**options))
    spec = job_pb2.PretrainSpec(
        output_model=f"layout-{options['layout']}",
        tokenizer_digest=platform.tokenizer_digest,
        datasets=["texts"],
        config=json.dumps(MODEL),
        options=merged,
    )
    job = platform.wait_until_ended(platform.submit(spec), timeout_s=600)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.error
    done = anthesis(platform, "reproduce", job.model_version)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_a_version_tuned_with_adapters_is_reproduced_to_the_last_bit(platform, pretrained):
    spec = job_pb2.FineTuneSpec(
        output_model="tuned",
        base=pretrained,
        datasets=["tasks"],
        options=OPTIONS,
        lora=job_pb2.LoraOptions(rank=2, dropout=0.1),
    )
    version = platform.wait_until_ended(platform.submit(spec), timeout_s=600).model_version
    done = anthesis(platform, "reproduce", version)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tuned-reproduced@1 is bitwise equal to tuned@1" in done.stdout
