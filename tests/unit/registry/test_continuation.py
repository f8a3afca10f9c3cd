"""A job whose base brings its run's state: what the registry refuses before anything starts."""

import json
from dataclasses import replace

import pytest

from services.common.errors import FailedPrecondition, InvalidArgument
from services.registry.checkpoints import File
from services.registry.job_specs import LoraOptions, TrainOptions
from tests.support.registry_data import TINY, store_checkpoint


async def spec_on_state(registry, options: TrainOptions, *, lora: LoraOptions | None = None, **changed):
    """A fine-tune on `grown`, a version with a state at step 95."""
    spec = await registry.fine_tune_spec(options=options, lora=lora, base="grown")
    layer = registry.artifacts.write_bytes(b"a layer's state")
    manifest = {"step": 95, "config": TINY.to_hf(), "files": {"layer-00001.safetensors": layer[7:]}} | changed
    stored = store_checkpoint(registry.artifacts)
    files = (
        *stored.files,
        File(path="state/manifest.json", digest=registry.artifacts.write_bytes(json.dumps(manifest).encode())),
        File(path="state/layer-00001.safetensors", digest=layer),
    )
    await registry.add_version(model="grown", files=files)
    return spec


async def test_a_job_goes_on_to_more_steps_than_are_done(registry):
    spec = await spec_on_state(registry, TrainOptions(steps=96))
    assert (await registry.submit(spec=spec)).id
    adapters = replace(spec, options=TrainOptions(epochs=1), lora=LoraOptions())
    assert (await registry.submit(spec=adapters)).id  # they begin anew


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (TrainOptions(steps=95), "steps=95: base grown@1 brings its optimizer's state at step 95.*say more"),
        (TrainOptions(epochs=1.0), "epochs=1: base grown@1 brings .* say steps"),
        (TrainOptions(steps=200, optimizer="muon"), "optimizer='muon': .* choose adamw"),
    ],
)
async def test_what_cannot_go_on_is_refused_with_the_remedy(registry, options, says):
    spec = await spec_on_state(registry, options)
    with pytest.raises(InvalidArgument, match=says):
        await registry.submit(spec=spec)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"step": "soon"}, "is none of this release"),
        ({"files": {"layer-00002.safetensors": "0" * 64}}, "grown@1 has no state/layer-00002.safetensors"),
        ({"files": {"layer-00001.safetensors": "0" * 64}}, "grown@1 has no state/layer-00001.safetensors"),
        ({"config": replace(TINY, n_layer=3).to_hf()}, "of a model of another shape"),
    ],
)
async def test_a_state_that_is_not_whole_or_of_another_model_is_refused(registry, changed, says):
    spec = await spec_on_state(registry, TrainOptions(steps=200), **changed)
    with pytest.raises(FailedPrecondition, match=says):
        await registry.submit(spec=spec)
