"""A version's job, submitted once more from its training.json, or refused with what is missing."""

import json
from dataclasses import replace

import pytest

from services.common.errors import FailedPrecondition, InvalidArgument
from services.registry.checkpoints import File
from services.registry.job_specs import FineTuneSpec, LoraOptions, PretrainSpec, TrainOptions, spec_from_row
from services.registry.reproduction import NewReproduction, Reproductions
from services.registry.tables import Dataset
from tests.support.registry_data import store_checkpoint, text_rows

CONFIG = '{"model_type": "bloom", "hidden_size": 12, "n_layer": 2, "n_head": 3, "vocab_size": 300}'
RECIPE = {"steps": 10, "seed": 7, "learning_rate": 0.5, "warmup_samples": 4, "layout": "1x1x2", "recompute": False}


@pytest.fixture
def reproductions(registry) -> Reproductions:
    return Reproductions(registry.database, registry.artifacts, registry.jobs)


async def trained(registry, **changes) -> str:
    """A version with a training.json; its name."""
    await registry.add_dataset()
    content = {
        "format": 1,
        "datasets": [{"name": "udhr", "format": "text", "digest": registry.artifacts.write_bytes(text_rows())}],
        "recipe": RECIPE,
        "lora": None,
        "base": "",
        "model_config": CONFIG,
    } | changes
    record = File(path="training.json", digest=registry.artifacts.write_bytes(json.dumps(content).encode()))
    stored = store_checkpoint(registry.artifacts)
    version = await registry.add_version(model="sprout", files=(*stored.files, record), source="job")
    return version.name


def again(version: str, **changes) -> NewReproduction:
    return NewReproduction(version=version, created_by="ada", **changes)


async def test_a_pretrained_version_is_made_again_under_another_model(registry, reproductions):
    job = await reproductions.create(again(await trained(registry)))
    spec = spec_from_row(job.spec)
    assert isinstance(spec, PretrainSpec)
    assert (spec.output_model, spec.licence, spec.datasets) == ("sprout-reproduced", "apache-2.0", ["udhr@1"])
    assert (spec.config, spec.options) == (CONFIG, TrainOptions(**RECIPE))


async def test_a_tuned_version_is_made_again_from_its_base(registry, reproductions):
    await registry.add_version()
    lora = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
    version = await trained(registry, base="seedling@1", lora=lora, model_config="")
    spec = spec_from_row((await reproductions.create(again(version, output_model="other"))).spec)
    assert isinstance(spec, FineTuneSpec)
    assert (spec.output_model, spec.base, spec.lora) == ("other", "seedling@1", LoraOptions(**lora))


async def test_changes_replace_what_the_recipe_says(registry, reproductions):
    changes = TrainOptions(seed=8, epochs=1.0, warmup_steps=0)
    spec = spec_from_row((await reproductions.create(again(await trained(registry), changes=changes))).spec)
    want = TrainOptions(
        **{**RECIPE, "seed": 8, "steps": None, "epochs": 1.0, "warmup_steps": 0, "warmup_samples": None}
    )
    assert spec.options == want


async def test_changes_are_checked_as_those_of_any_job(registry, reproductions):
    with pytest.raises(InvalidArgument, match=r"tp=2 does not divide 3 heads"):
        await reproductions.create(again(await trained(registry), changes=TrainOptions(layout="2x1x1")))


async def test_a_version_without_a_record_is_refused(registry, reproductions):
    imported = await registry.add_version()
    with pytest.raises(FailedPrecondition, match=r"seedling@1 was imported: it has no training\.json"):
        await reproductions.create(again(imported.name))
    older = await registry.add_version(source="job")
    with pytest.raises(FailedPrecondition, match="seedling@2 was trained by an older release"):
        await reproductions.create(again(older.name))


@pytest.mark.parametrize("content", [{"format": 2}, {"recipe": {**RECIPE, "warp": 1}}])
async def test_a_record_of_another_release_is_refused(registry, reproductions, content):
    with pytest.raises(FailedPrecondition, match="use the release that"):
        await reproductions.create(again(await trained(registry, **content)))


async def test_a_version_that_began_with_another_jobs_checkpoint_is_refused(registry, reproductions):
    version = await trained(registry, from_checkpoint="job-7")
    with pytest.raises(FailedPrecondition, match=f"{version} was trained from a checkpoint of job-7; reproduce what"):
        await reproductions.create(again(version))


async def test_a_dataset_that_is_gone_or_has_changed_is_refused_by_name(registry, reproductions):
    version = await trained(registry)
    async with registry.database.write() as session:
        dataset = await session.get(Dataset, "udhr@1")
        digest, dataset.digest = dataset.digest, registry.artifacts.write_bytes(text_rows(4))
    with pytest.raises(FailedPrecondition, match=f"dataset 'udhr', .* has other content now; .*{digest}"):
        await reproductions.create(again(version))
    async with registry.database.write() as session:
        await session.delete(await session.get(Dataset, "udhr@1"))
    with pytest.raises(
        FailedPrecondition, match=f"dataset 'udhr', which {version} was trained on, is gone; .*{digest}"
    ):
        await reproductions.create(again(version))


async def test_a_record_means_the_version_with_its_content_whatever_came_later(registry, reproductions):
    """Records of releases without versions name none; those of this one do."""
    plain = await trained(registry)
    digests = [{"name": "udhr@1", "format": "text", "digest": registry.artifacts.write_bytes(text_rows())}]
    named = await trained(registry, datasets=digests)
    await registry.datasets.create("udhr", "TEXT", registry.artifacts.write_bytes(text_rows(9)))
    for version in (plain, named):
        spec = spec_from_row((await reproductions.create(again(version))).spec)
        assert spec.datasets == ["udhr@1"]


async def test_the_same_key_gives_the_same_job(registry, reproductions):
    new = again(await trained(registry), idempotency_key="once")
    assert (await reproductions.create(new)).id == (await reproductions.create(replace(new))).id
