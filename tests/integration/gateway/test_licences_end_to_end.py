"""A RAIL model from its fine-tune to its answers: real registry, tokenizer and gateway, a worker that draws as told."""

from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
from anthesis import FineTuneSpec, SamplingParams, TrainOptions
from anthesis.errors import FailedPreconditionError

from tests.support.gateway_stack import Stack, running_stack
from tests.support.registry_data import multitask_rows

RAIL = "bigscience-rail-1.0"


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    async with running_stack() as running:
        yield running


def fine_tune(base: str) -> FineTuneSpec:
    return FineTuneSpec(output_model="tuned", base=base, datasets=["tasks"], options=TrainOptions(steps=10))


async def refused(call, what: str) -> None:
    """`call` fails and says what is restricted and how to accept."""
    with pytest.raises(FailedPreconditionError) as error:
        await call
    for said in (f"'ada' has first to accept what {what}", "1. In any way", f"`anthesis licences accept {RAIL}`"):
        assert said in str(error.value)


async def test_a_rail_model_is_tuned_downloaded_and_used_by_who_accepted_alone(stack: Stack, tmp_path: Path) -> None:
    ada = stack.ada
    base = await stack.add_version("bloom", RAIL)
    await ada.datasets.create("tasks", (await ada.artifacts.upload_bytes(multitask_rows())).digest, format=2)
    weights = next(file.digest for file in base.files if file.path == "model.safetensors")
    await stack.serve(base.name)

    await refused(ada.jobs.create(fine_tune("bloom")), "bloom@1 is under")
    await refused(ada.artifacts.download(weights, tmp_path / "weights"), f"artifact {weights} is under")
    await refused(ada.complete("bloom", "Hello"), "bloom@1 is under")
    with pytest.raises(openai.PermissionDeniedError, match=f"accept {RAIL}") as denied:
        await stack.openai.completions.create(model="bloom", prompt="Hello")
    assert denied.value.code == "licence_not_accepted"
    assert not await ada.jobs.list()
    assert not (tmp_path / "weights").exists()

    (licence,) = await ada.licences.missing("bloom")
    await ada.licences.accept(licence.id, licence.digest)
    version = await stack.train(await ada.jobs.create(fine_tune("bloom")))

    assert (version.parent, version.licence) == ("bloom@1", RAIL)
    for number, file in enumerate(version.files):
        await ada.artifacts.download(file.digest, tmp_path / str(number))
    texts = {file.path: (tmp_path / str(number)).read_bytes() for number, file in enumerate(version.files)}
    assert texts[f"LICENSES/{RAIL}.txt"].decode() == licence.text
    assert licence.use_restrictions in texts["USE_RESTRICTIONS"].decode()
    assert "bloom@1" in texts["NOTICE"].decode()
    assert f"trained by job {version.job_id} from the weights of bloom@1" in texts["CHANGES"].decode()

    await stack.serve(version.name)
    answer = await ada.complete("tuned", "Hello", SamplingParams(max_tokens=8))
    assert (answer.text, answer.machine_generated, list(answer.licences)) == (" world", True, [RAIL])
    raw = await stack.openai.completions.with_raw_response.create(model="tuned", prompt="Hello")
    assert raw.headers["x-anthesis-machine-generated"] == "true"
    assert raw.headers["x-anthesis-licences"] == RAIL


async def test_a_merge_is_under_both_licences_and_tells_of_both_parents(stack: Stack) -> None:
    await stack.add_version("bloom", RAIL)
    await stack.add_version("free", "MIT")
    merged = await stack.add_version("merged", parent="bloom", other_parents=["free"])
    assert merged.licence == "bigscience-rail-1.0 AND mit"
    assert {"LICENSES/bigscience-rail-1.0.txt", "LICENSES/mit.txt"} <= {file.path for file in merged.files}
    assert [ancestor.name for ancestor in await stack.ada.models.lineage("merged")] == ["bloom@1", "free@1"]
    await stack.serve(merged.name)
    await refused(stack.ada.complete("merged", "Hello"), "merged@1 is under")
