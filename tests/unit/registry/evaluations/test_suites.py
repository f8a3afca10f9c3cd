import asyncio

import pytest

from services.common.errors import AlreadyExists, InvalidArgument, NotFound
from services.registry.catalogue import seed_catalogue
from services.registry.evaluations.published import seed_published
from services.registry.evaluations.suites import BENCHMARK, Metric
from services.registry.pages import PageRequest

NO_SUITES = [
    ({"family": "a/b"}, "suite name 'a/b' is not allowed"),
    ({"kind": ""}, "set BITS_PER_BYTE, BENCHMARK or LM_EVAL"),
    ({"datasets": []}, "names 0 datasets; name 1 to 100"),
    ({"datasets": ["held-out", "held-out"]}, "name one twice"),
    ({"sequence_length": 8}, r"sequence_length=8 is out of range; choose a value in \[16, 65536\]"),
    ({"sequence_length": 65537}, "sequence_length=65537 is out of range"),
    ({"task": "XNLI"}, "are a BENCHMARK's"),
    ({"description": "x" * 1001}, "1000 characters"),
    ({"kind": BENCHMARK}, "are for BITS_PER_BYTE"),
    ({"kind": BENCHMARK, "datasets": []}, "has a task and 1 to 20 metrics"),
    ({"kind": BENCHMARK, "datasets": [], "task": "t"}, "has a task and 1 to 20 metrics"),
    (
        {"kind": BENCHMARK, "datasets": [], "task": "t", "metrics": [Metric(name="a", higher_is_better=True)] * 2},
        "each with a name of its own",
    ),
]


async def test_a_suite_has_the_datasets_as_they_are_and_a_version(measuring):
    suite = await measuring.suites.get("held-out")
    assert (suite.name, suite.number, suite.sequence_length) == ("held-out@1", 1, 512)
    assert suite.metrics == [{"name": "bits_per_byte", "higher_is_better": False}]
    dataset = await measuring.registry.datasets.get("held-out")
    kept = {"name": "held-out@1", "format": "TEXT", "digest": dataset.digest, "languages": dataset.languages}
    assert suite.datasets == [kept]


async def test_the_same_is_the_same_version_and_something_else_the_next(measuring):
    assert (await measuring.add_suite(created_by="bob")).name == "held-out@1"
    assert (await measuring.add_suite(sequence_length=256)).name == "held-out@2"
    assert (await measuring.add_suite()).name == "held-out@3"
    assert (await measuring.suites.get("held-out")).name == "held-out@3"
    assert (await measuring.suites.get("held-out@1")).sequence_length == 512


async def test_several_makers_get_versions_without_a_gap(measuring):
    lengths = (16, 32, 64, 128)
    made = await asyncio.gather(*(measuring.add_suite("race", sequence_length=length) for length in lengths))
    assert sorted(suite.name for suite in made) == [f"race@{number}" for number in (1, 2, 3, 4)]


async def test_suites_come_in_pages(measuring):
    await measuring.add_suite("another")
    first = await measuring.suites.list_suites(PageRequest(size=1))
    rest = await measuring.suites.list_suites(PageRequest(token=first.next_token))
    assert [suite.name for suite in (*first.rows, *rest.rows)] == ["another@1", "held-out@1"]


async def test_an_unknown_suite_is_told_from_those_that_there_are(measuring):
    for name in ("tulips", "held-out@2", ""):
        with pytest.raises(NotFound, match="`anthesis evaluations suites` shows"):
            await measuring.suites.get(name)


async def test_what_is_no_suite_is_refused_and_nothing_made(measuring):
    for changes, message in NO_SUITES:
        with pytest.raises(InvalidArgument, match=message):
            await measuring.add_suite(**({"family": "bad"} | changes))
        with pytest.raises(NotFound):
            await measuring.suites.get("bad")


async def test_a_dataset_whose_texts_cannot_be_scored_is_refused(measuring):
    await measuring.registry.add_dataset("blend", "BLEND")
    with pytest.raises(InvalidArgument, match="'blend@1' is BLEND; bits per byte are of TEXT or MULTITASK rows"):
        await measuring.add_suite("bad", datasets=["blend"])
    with pytest.raises(NotFound, match="no dataset 'tulips'"):
        await measuring.add_suite("bad", datasets=["tulips"])


async def test_a_published_suite_gets_no_further_version(measuring):
    await seed_catalogue(measuring.registry.database)
    await seed_published(measuring.registry.database)
    with pytest.raises(AlreadyExists, match="'xnli' came with this release; choose another name"):
        await measuring.add_suite("xnli")
    assert (await measuring.suites.get("xnli")).name == "xnli@1"
