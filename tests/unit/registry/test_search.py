"""Lists that are asked for something: what is found, in which order, page by page."""

import base64
import json
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidArgument, NotFound
from services.registry.catalogue import seed_catalogue
from services.registry.models import NewModel
from services.registry.pages import PageRequest
from services.registry.search import JobQuery, ModelQuery, VersionQuery


async def models(registry, **query):
    return [row.name for row in (await registry.models.list_models(PageRequest(), ModelQuery(**query))).rows]


async def versions(registry, model="", **query):
    return [
        row.name for row in (await registry.versions.list_versions(model, PageRequest(), VersionQuery(**query))).rows
    ]


async def jobs(registry, state="", **query):
    return [row.id for row in (await registry.jobs.list_jobs(state, PageRequest(), JobQuery(**query))).rows]


async def create(registry, name, description="", **more):
    await registry.models.create(NewModel(name=name, licence="mit", description=description, **more))


@pytest.mark.parametrize(
    "text", ["ÇİÇEK", "çi̇çek", "ｓｅｅｄ", "TULIP", "tulip   in", "Ⅳ", "50%", "a_b", "\\d", "'; --", "straße"]
)
async def test_text_is_found_whatever_its_case_width_or_what_it_means_to_sql(registry, text):
    await create(registry, "wanted", "Seed of a TULIP in Çİçek, IV, 50% of a_b, \\d+ and '; --, STRASSE")
    await create(registry, "other", "see of a tuli p, 50 of aXb, V")
    assert await models(registry, text=text) == ["wanted"]


@pytest.mark.parametrize("text", ["%", "_", "\\"])
async def test_a_wildcard_is_a_character_like_others(registry, text):
    await create(registry, "plain", "seed")
    assert await models(registry, text=text) == []


async def test_a_name_a_description_and_a_tag_are_searched(registry):
    await create(registry, "lab/by-name", "x")
    await create(registry, "a", "by-name is in the description")
    await create(registry, "b", tags=["by-name"])
    await create(registry, "c")
    assert await models(registry, text="BY-NAME") == ["a", "b", "lab/by-name"]


async def test_models_are_found_by_each_field_and_by_all_together(registry):
    await seed_catalogue(registry.database, registry.clock)
    await create(registry, "lab/one", languages=["fr", "Python"], tags=["gold"], created_by="ada")
    registry.clock.advance(60)
    await create(registry, "lab/two", languages=["sw"], tags=["goldish"], created_by="bob")
    await registry.add_version("lab/two", licence="mit")
    assert await models(registry, language="python", licence="MIT") == ["lab/one"]
    assert await models(registry, tag="Gold") == ["lab/one"]
    assert await models(registry, created_by="bob") == ["lab/two"]
    assert await models(registry, ready=True) == ["lab/two"]
    assert await models(registry, base_model="bigscience/bloom-560m") == ["bigscience/bloomz-560m"]
    assert await models(registry, start=registry.clock.now) == ["lab/two"]
    assert "lab/two" not in await models(registry, end=registry.clock.now)
    assert len(await models(registry, licence="bigscience-rail-1.0")) == 16
    assert await models(registry, licence="bigscience-rail-1.0", text="bloomz", language="fr", tag="gold") == []
    assert await models(registry, text="lab/", order="NEWEST") == ["lab/two", "lab/one"]
    assert await models(registry, text="lab/", order="OLDEST") == ["lab/one", "lab/two"]


async def test_versions_are_found_by_each_field(registry):
    await registry.add_dataset("udhr")
    await registry.add_dataset("udhr-2")
    await create(registry, "free", "of Weeds", languages=["fr"])
    await registry.add_version("free", licence="", tags=["Gold"], created_by="ada", datasets=["udhr"])
    registry.clock.advance(60)
    await registry.add_version("seedling", created_by="bob", datasets=["udhr-2"])
    await registry.add_version("child", licence="", parent="seedling@1")
    await registry.add_version("merged", licence="", parent="free@1", other_parents=["seedling@1"])
    assert await versions(registry, text="WEEDS") == ["free@1"]
    assert await versions(registry, text="gold") == ["free@1"]
    assert await versions(registry, text="ling@1") == ["seedling@1"]
    assert await versions(registry, licence="mit") == ["merged@1", "free@1"]
    assert await versions(registry, licence="apache-2.0 AND mit") == ["merged@1"]
    assert await versions(registry, language="FR") == ["free@1"]
    assert await versions(registry, tag="gold") == ["free@1"]
    assert await versions(registry, parent="seedling@1") == ["merged@1", "child@1"]
    assert await versions(registry, dataset="udhr") == ["free@1"]
    assert await versions(registry, created_by="bob") == ["seedling@1"]
    assert await versions(registry, end=registry.clock.now) == ["free@1"]
    assert await versions(registry, "child", start=registry.clock.now) == ["child@1"]
    assert await versions(registry, order="OLDEST", licence="mit") == ["free@1", "merged@1"]


async def test_jobs_are_found_by_each_field(registry):
    first = await registry.submit(spec=await registry.fine_tune_spec(output_model="lab/rose"))
    registry.clock.advance(1)
    second = await registry.submit(spec=await registry.pretrain_spec(output_model="lab/tulip"))
    assert await jobs(registry) == [second.id, first.id]
    assert await jobs(registry, order="OLDEST") == [first.id, second.id]
    assert await jobs(registry, text="ROSE") == [first.id]
    assert await jobs(registry, text="seedling") == [first.id]
    assert await jobs(registry, text="lab/") == [second.id, first.id]
    assert await jobs(registry, text="lab_") == []
    assert await jobs(registry, output_model="lab/tulip") == [second.id]
    assert await jobs(registry, base="seedling@1") == [first.id]
    assert await jobs(registry, dataset="udhr") == [second.id]
    assert await jobs(registry, created_by="ada", dataset="tasks") == [first.id]
    assert await jobs(registry, created_by="bob") == []
    assert await jobs(registry, start=registry.clock.now) == [second.id]
    assert await jobs(registry, end=registry.clock.now) == [first.id]
    assert await jobs(registry, "CANCELLED") == []
    await registry.jobs.cancel(first.id)
    assert await jobs(registry, "CANCELLED", text="rose") == [first.id]


async def test_a_jobs_times_are_those_of_its_row(registry):
    """They are compared by its id."""
    job = await registry.submit()
    step = timedelta(microseconds=1)
    assert await jobs(registry, start=job.create_time, end=job.create_time + step) == [job.id]
    assert await jobs(registry, start=job.create_time + step) == await jobs(registry, end=job.create_time) == []


async def walk(list_page, size):
    """Every row of a list, page by page."""
    found, token = [], ""
    while True:
        page = await list_page(PageRequest(size, token))
        assert len(page.rows) <= size
        found += page.rows
        if not (token := page.next_token):
            return found


@pytest.mark.parametrize("order", ["", "NEWEST", "OLDEST"])
async def test_pages_hold_each_row_once_also_of_models_made_at_the_same_time(registry, order):
    for number in range(7):
        await create(registry, f"tulip-{number}")
        registry.clock.advance(number % 2)
    query = ModelQuery(text="tulip", order=order)
    paged = await walk(lambda page: registry.models.list_models(page, query), 2)
    whole = (await registry.models.list_models(PageRequest(), query)).rows
    assert [row.name for row in paged] == [row.name for row in whole]
    key = (lambda row: row.name) if not order else (lambda row: (row.create_time, row.name))
    assert whole == sorted(whole, key=key, reverse=order == "NEWEST")


async def test_jobs_that_are_searched_come_in_pages_too(registry):
    for number in range(5):
        await registry.submit(spec=await registry.pretrain_spec(output_model=f"tulip-{number % 2}"))
        registry.clock.advance(1)
    paged = await walk(lambda page: registry.jobs.list_jobs("", page, JobQuery(text="TULIP-0")), 2)
    assert [row.output_model for row in paged] == ["tulip-0"] * 3
    assert [row.id for row in paged] == sorted((row.id for row in paged), reverse=True)


async def test_a_page_token_is_of_one_query_and_one_order(registry):
    for number in range(3):
        await create(registry, f"tulip-{number}")
    first = await registry.models.list_models(PageRequest(1), ModelQuery(text="tulip"))
    others = (ModelQuery(), ModelQuery(text="tuli"), ModelQuery(text="tulip", order="NEWEST"), ModelQuery(tag="tulip"))
    for other in others:
        with pytest.raises(InvalidArgument, match="is not from this list"):
            await registry.models.list_models(PageRequest(1, first.next_token), other)
    again = await registry.models.list_models(PageRequest(1, first.next_token), ModelQuery(text="tulip"))
    assert [row.name for row in again.rows] == ["tulip-1"]


@pytest.mark.parametrize(
    "last", [["x", "a"], [1, "a"], ["2026-01-01T00:00:00", 1], ["2026-01-01T00:00:00"], [None, "a"]]
)
async def test_a_forged_token_of_models_by_time_is_refused(registry, last):
    query = ModelQuery(order="NEWEST")
    forged = base64.urlsafe_b64encode(json.dumps([query.scope, *last]).encode()).decode()
    with pytest.raises(InvalidArgument, match="is not from this list"):
        await registry.models.list_models(PageRequest(token=forged), query)


async def test_what_can_be_nobodys_is_refused_with_what_can(registry):
    for query in (ModelQuery(licence="a b"), ModelQuery(tag="<b>"), ModelQuery(text="x" * 201)):
        with pytest.raises(InvalidArgument):
            await registry.models.list_models(PageRequest(), query)
    with pytest.raises(NotFound, match="no model 'gone'"):
        await versions(registry, "gone")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40), value=st.text(max_size=40))
async def test_any_text_may_be_asked_for(registry, text, value):
    """Nothing of it is SQL, a pattern, or more than the database can hold."""
    for found in (
        models(registry, text=text, language=value, created_by=value, base_model=value),
        versions(registry, text=text, language=value, parent=value, dataset=value),
        jobs(registry, text=text, output_model=value, base=value, dataset=value, created_by=value),
    ):
        assert await found == []
