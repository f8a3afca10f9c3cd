"""A dataset's versions: numbered, never changed, and pinned by whatever refers to one."""

import asyncio
import json
from dataclasses import replace

import pytest

from services.common.errors import AlreadyExists, InvalidArgument, NotFound
from services.registry.leases import Succeeded
from services.registry.pages import PageRequest
from tests.support.registry_data import multitask_rows, store_checkpoint, text_rows


async def upload(registry, name: str, content: bytes, dataset_format: str = "TEXT"):
    return await registry.datasets.create(name, dataset_format, registry.artifacts.write_bytes(content), "ada")


async def names_of(listing, *args) -> list[str]:
    """All of a listing, two a page."""
    found, token = [], ""
    while True:
        page = await listing(*args, PageRequest(2, token))
        found += [row.name for row in page.rows]
        token = page.next_token
        if not token:
            return found


async def test_other_content_is_the_next_version_and_the_same_none(registry):
    made = [await upload(registry, "udhr", text_rows(count)) for count in (1, 1, 2, 1)]
    assert [(row.name, row.dataset, row.number, row.num_rows) for row in made] == [
        ("udhr@1", "udhr", 1, 1),
        ("udhr@1", "udhr", 1, 1),
        ("udhr@2", "udhr", 2, 2),
        ("udhr@3", "udhr", 3, 1),
    ]
    assert {row.created_by for row in made} == {"ada"}


async def test_a_name_means_the_newest_version_and_a_number_that_one(registry):
    for count in (1, 2):
        await upload(registry, "udhr", text_rows(count))
    assert [(await registry.datasets.get(name)).num_rows for name in ("udhr", "udhr@1", "udhr@2")] == [2, 1, 2]
    for missing in ("udhr@3", "udhr@", "udhr@01", "udh", "@1"):
        with pytest.raises(NotFound, match=f"no dataset '{missing}'"):
            await registry.datasets.get(missing)
    with pytest.raises(InvalidArgument, match="is not allowed"):
        await upload(registry, "udhr@3", text_rows(3))


async def test_the_list_has_the_newest_of_each_and_versions_come_newest_first(registry):
    for name, count in (("b", 1), ("a", 1), ("b", 2), ("c", 1), ("b", 3)):
        await upload(registry, name, text_rows(count))
    assert await names_of(registry.datasets.list_datasets) == ["a@1", "b@3", "c@1"]
    assert await names_of(registry.datasets.list_versions, "b") == ["b@3", "b@2", "b@1"]
    with pytest.raises(NotFound, match="no dataset 'd'"):
        await registry.datasets.list_versions("d", PageRequest())


async def test_a_version_of_another_format_is_refused(registry):
    await upload(registry, "udhr", text_rows())
    with pytest.raises(AlreadyExists, match="'udhr' is TEXT, and a version of it cannot be MULTITASK; choose another"):
        await upload(registry, "udhr", multitask_rows(), "MULTITASK")
    assert await names_of(registry.datasets.list_versions, "udhr") == ["udhr@1"]


async def test_uploads_at_once_get_a_number_each(registry):
    made = await asyncio.gather(*(upload(registry, "udhr", text_rows(count)) for count in range(1, 7)))
    assert sorted(row.number for row in made) == [1, 2, 3, 4, 5, 6]
    assert len({row.digest for row in made}) == 6
    again = await asyncio.gather(*(upload(registry, "tasks", text_rows(1)) for _ in range(4)))
    assert {row.name for row in again} == {"tasks@1"}


async def test_a_job_learns_from_the_versions_that_were_there_when_it_was_made(registry):
    await upload(registry, "held", text_rows(7))
    job = await registry.submit(spec=await registry.pretrain_spec(validation_datasets=["held"]))
    for name in ("udhr", "held"):
        await upload(registry, name, text_rows(9))
    assert (job.spec["datasets"], job.spec["validation_datasets"]) == (["udhr@1"], ["held@1"])
    acquired = await registry.leases.acquire(job.id, "t")
    assert [(row.name, row.num_rows) for row in acquired.datasets] == [("udhr@1", 3), ("held@1", 7)]
    await registry.leases.finish(job.id, 1, Succeeded(store_checkpoint(registry.artifacts).files))
    version = await registry.aliases.resolve("sprout")
    assert version.datasets == ["udhr@1"]


async def test_a_version_that_is_named_twice_is_refused(registry):
    spec = await registry.pretrain_spec(datasets=["udhr", "udhr@1"])
    with pytest.raises(InvalidArgument, match="datasets udhr, udhr@1 name one twice"):
        await registry.submit(spec=spec)


async def test_an_imported_version_pins_its_datasets_too(registry):
    await registry.add_dataset()
    assert (await registry.add_version(datasets=["udhr"])).datasets == ["udhr@1"]


def mixture(template: str) -> bytes:
    return f"tasks: {json.dumps({'xnli': {'templates': [{'jinja': template}]}})}".encode()


async def test_a_mixture_means_the_newest_version_unless_the_job_names_one(registry):
    for content in (b'{"a": "x", "b": "y"}\n', b'{"a": "x", "b": "z"}\n'):
        await upload(registry, "xnli", content, "FIELDS")
    await upload(registry, "mix", mixture("{{a}} ||| {{b}}"), "MIXTURE")
    spec = await registry.fine_tune_spec(datasets=["mix"])
    assert (await registry.submit(spec=spec)).spec["datasets"] == ["mix@1", "xnli@2"]
    pinned = replace(spec, datasets=["mix", "xnli@1"])
    assert (await registry.submit(spec=pinned)).spec["datasets"] == ["mix@1", "xnli@1"]


async def test_a_version_that_its_mixtures_templates_do_not_suit_is_refused(registry):
    await upload(registry, "xnli", b'{"a": "x", "b": "y"}\n', "FIELDS")
    await upload(registry, "mix", mixture("{{a}} ||| {{b}}"), "MIXTURE")
    spec = await registry.fine_tune_spec(datasets=["mix"])
    await upload(registry, "xnli", b'{"a": "x", "c": "y"}\n', "FIELDS")
    with pytest.raises(InvalidArgument, match="task 'xnli@2': 'template 1' reads 'b', which no row has"):
        await registry.submit(spec=spec)
