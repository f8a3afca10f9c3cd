"""Usage in the database: added up, counted once, seen by whose it is."""

import asyncio

import pytest

from services.common.errors import InvalidArgument
from services.registry.pages import PageRequest
from services.registry.projects.service import ProjectChange, Projects
from services.registry.projects.usage import BATCHES_KEPT, UsageLine, UsageLog, UsageQuery
from tests.support.projects import calling_for


@pytest.fixture
async def usage(database, clock):
    for name in ("lab", "other"):
        await Projects(database, clock).create(name)
    return UsageLog(database, clock)


def line(project="lab", requests=1, prompt_tokens=2, completion_tokens=3, **changes):
    values = {"principal": f"{project}/ada", "model_version": "seedling@1", "language": ""} | changes
    counts = {"requests": requests, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return UsageLine(project=project, **values, **counts)


async def rows(usage, **query):
    found = (await usage.list_usage(UsageQuery(**query), PageRequest())).rows
    return [
        (row.day, row.project, row.language, row.requests, row.prompt_tokens, row.completion_tokens) for row in found
    ]


async def test_lines_add_up_by_day_project_principal_version_and_language(usage, clock):
    await usage.report("a", [line(), line(language="fr"), line("other")], [])
    await usage.report("b", [line(requests=10)], [])
    clock.advance(86_400)
    await usage.report("c", [line()], [])
    assert sorted(await rows(usage)) == [
        ("2026-01-01", "lab", "", 11, 4, 6),
        ("2026-01-01", "lab", "fr", 1, 2, 3),
        ("2026-01-01", "other", "", 1, 2, 3),
        ("2026-01-02", "lab", "", 1, 2, 3),
    ]
    assert await rows(usage, start_day="2026-01-02") == [("2026-01-02", "lab", "", 1, 2, 3)]
    assert await rows(usage, end_day="2026-01-01", project="other") == [("2026-01-01", "other", "", 1, 2, 3)]


async def test_a_batch_counts_once_however_often_it_comes(usage):
    await asyncio.gather(*(usage.report("a", [line(), line(language="fr")], []) for _ in range(5)))
    assert [row[3] for row in await rows(usage)] == [1, 1]


async def test_batches_at_once_lose_nothing(usage):
    lines = [line(language=language) for language in ("fr", "sw", "")]
    await asyncio.gather(*(usage.report(f"batch-{n}", lines[:: 1 if n % 2 else -1], []) for n in range(8)))
    assert [row[3] for row in await rows(usage)] == [8, 8, 8]


async def test_old_batches_are_forgotten(usage, clock):
    await usage.report("a", [line()], [])
    clock.advance(BATCHES_KEPT.total_seconds() + 1)
    await usage.report("b", [line()], [])
    await usage.report("a", [line()], [])
    assert [row[3] for row in await rows(usage)] == [2, 1]


async def test_a_report_is_answered_with_what_projects_may_use(usage, database, clock):
    await Projects(database, clock).update("lab", ProjectChange(quotas={"max_tokens_per_day": 9}))
    [lab, other] = await usage.report("a", [line(), line("other", prompt_tokens=0)], ["other", "lab", "nobody"])
    assert (lab.project.name, lab.project.max_tokens_per_day, lab.tokens_today) == ("lab", 9, 5)
    assert (other.project.name, other.project.max_tokens_per_day, other.tokens_today) == ("other", 0, 3)
    clock.advance(86_400)
    [lab] = await usage.report("", [], ["lab"])
    assert lab.tokens_today == 0


async def test_a_project_sees_its_own_usage_alone(usage):
    await usage.report("a", [line(), line("other"), line("", principal="root")], [])
    with calling_for("lab", "admin"):
        assert [row[1] for row in await rows(usage)] == ["lab"]
        assert await rows(usage, project="other") == []
    assert {row[1] for row in await rows(usage)} == {"lab", "other", ""}


async def test_nonsense_is_refused_and_counts_nothing(usage):
    for batch_id, lines, why in (
        ("", [line()], "batch_id has 0 characters; give each batch one of 1 to 64"),
        ("x" * 65, [line()], "batch_id has 65 characters"),
        ("a", [line(), line(requests=1 << 60)], "requests=1152921504606846976 of 'seedling@1' is out of range"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            await usage.report(batch_id, lines, [])
    assert await rows(usage) == []
    with pytest.raises(InvalidArgument, match="start_day='yesterday' is no day; write 2026-11-29"):
        UsageQuery(start_day="yesterday")
