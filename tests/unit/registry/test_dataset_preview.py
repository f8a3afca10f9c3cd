"""A few rows of a dataset: the first, or drawn; never more in memory than the rows that are shown."""

import json

import pytest

from services.common.errors import FailedPrecondition
from services.registry import dataset_preview
from services.registry.dataset_preview import MAX_CHARACTERS, MAX_FIELDS, MAX_ROWS
from tests.support.registry_data import text_rows


async def preview(registry, content: bytes, num_rows: int = 0, seed: int | None = None, dataset_format: str = "TEXT"):
    await registry.datasets.create("rows", dataset_format, registry.artifacts.write_bytes(content))
    return (await registry.datasets.preview("rows", num_rows, seed))[1]


async def test_the_first_rows_come_with_their_fields_in_order(registry):
    rows = await preview(registry, b'{"text": "a", "language": "fr", "n": [1, {"x": null}]}\n' + text_rows(30), 2)
    assert [row.number for row in rows] == [1, 2]
    assert [(field.name, field.text) for field in rows[0].fields] == [
        ("text", "a"),
        ("language", "fr"),
        ("n", '[1, {"x": null}]'),
    ]
    assert len(await preview(registry, text_rows(31))) == 10
    assert len(await preview(registry, text_rows(MAX_ROWS + 9), 2**32 - 1)) == MAX_ROWS
    assert len(await preview(registry, text_rows(3), 5)) == 3


async def test_a_seed_draws_the_same_rows_again_and_another_seed_others(registry):
    drawn = [[row.number for row in await preview(registry, text_rows(1000), 5, seed)] for seed in (0, 0, 1, 2**64 - 1)]
    assert drawn[0] == drawn[1]
    assert len({tuple(rows) for rows in drawn}) == 3
    assert all(rows == sorted(set(rows)) and len(rows) == 5 for rows in drawn)
    rows = await preview(registry, text_rows(1000), 5, 0)
    assert [row.fields[0].text for row in rows] == [f"row {row.number - 1}" for row in rows]


async def test_every_row_may_be_drawn(registry):
    """The planted mistake, a sample of the file's beginning, would fail here."""
    found = {row.number for seed in range(60) for row in await preview(registry, text_rows(20), 2, seed)}
    assert found == set(range(1, 21))


async def test_long_fields_and_rows_of_many_are_cut(registry):
    row = {"text": "é" * 10_000} | {f"field{n}": n for n in range(200)}
    (shown,) = await preview(registry, json.dumps(row).encode() + b"\n")
    assert len(shown.fields) == MAX_FIELDS
    assert (shown.fields[0].text, shown.fields[0].num_characters) == ("é" * MAX_CHARACTERS, 10_000)


async def test_half_surrogate_pairs_in_fields_that_nobody_reads_do_no_harm(registry):
    (shown,) = await preview(registry, b'{"text": "a", "note": "\\ud800"}\n')
    assert shown.fields[1].text == "?"


async def test_what_comes_after_the_last_row_is_not_read(registry, monkeypatch):
    dataset = await registry.datasets.create("rows", "TEXT", registry.artifacts.write_bytes(text_rows(100_000)))
    read = registry.artifacts.read
    chunks = []

    def counting(digest):
        for chunk in read(digest):
            chunks.append(len(chunk))
            yield chunk

    monkeypatch.setattr(registry.artifacts, "read", counting)
    assert len(dataset_preview.preview(registry.artifacts, dataset, 3, None)) == 3
    assert (len(chunks), dataset.size_bytes > 3 * chunks[0]) == (1, True)


@pytest.mark.parametrize("dataset_format", ["BLEND", "MIXTURE"])
async def test_yaml_has_no_rows(registry, dataset_format):
    for name, kind in (("tasks", "MULTITASK"), ("fields", "FIELDS"), ("yaml", dataset_format)):
        await registry.add_dataset(name, kind)
    with pytest.raises(FailedPrecondition, match=f"'yaml@1' is a {dataset_format}, which has no rows but YAML;"):
        await registry.datasets.preview("yaml", 1, None)
