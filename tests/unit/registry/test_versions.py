import asyncio
import base64

import pytest

from services.common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from services.registry.catalogue import read_catalogue, seed_catalogue
from services.registry.models import NewModel
from services.registry.pages import PageRequest


async def test_versions_are_numbered_from_one_and_the_model_is_made_when_missing(registry):
    names = [(await registry.add_version()).name for _ in range(3)]
    assert names == ["seedling@1", "seedling@2", "seedling@3"]
    model = await registry.models.get("seedling")
    assert (model.latest_version, model.licence, model.parameters) == (3, "apache-2.0", 7_416)


async def test_versions_registered_at_once_get_different_numbers(registry):
    versions = await asyncio.gather(*(registry.add_version() for _ in range(6)))
    assert sorted(version.number for version in versions) == [1, 2, 3, 4, 5, 6]


async def test_a_name_means_an_alias_first_then_a_version_then_the_newest_version(registry):
    for _ in range(3):
        await registry.add_version()
    await registry.set_alias("flower", "seedling@1")
    resolved = [(await registry.aliases.resolve(name)).name for name in ("flower", "seedling@2", "seedling")]
    assert resolved == ["seedling@1", "seedling@2", "seedling@3"]
    await registry.set_alias("seedling", "seedling@2")
    assert (await registry.aliases.resolve("seedling")).name == "seedling@2"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("seedlng", "did you mean 'seedling'?"),
        ("seedling@7", "did you mean 'seedling@1'"),
        ("flowr", "did you mean 'flower'?"),
        ("a\0b", "no model, version or alias 'a\\x00b'"),
        ("qqqq", "no model, version or alias 'qqqq'; `anthesis models list`"),
    ],
)
async def test_an_unknown_name_is_not_found_and_close_ones_are_offered(registry, name, hint):
    await registry.add_version()
    await registry.set_alias("flower", "seedling")
    with pytest.raises(NotFound) as refused:
        await registry.aliases.resolve(name)
    assert hint in str(refused.value)


async def test_a_catalogue_model_without_weights_says_how_to_import_them(registry):
    await seed_catalogue(registry.database)
    with pytest.raises(FailedPrecondition, match="`anthesis models import bigscience/bloom-560m --from DIR`"):
        await registry.aliases.resolve("bigscience/bloom-560m")


async def test_weights_of_another_shape_are_not_taken_for_a_catalogue_model(registry):
    await seed_catalogue(registry.database)
    with pytest.raises(InvalidArgument, match=r"vocab_size=300 .* published with 250880"):
        await registry.add_version("bigscience/bloom-560m", licence="")
    assert (await registry.models.get("bigscience/bloom-560m")).latest_version == 0


async def test_the_catalogue_has_the_sixteen_published_models(registry):
    await seed_catalogue(registry.database)
    await seed_catalogue(registry.database)
    models = {model.name: model for model in (await registry.models.list_models(PageRequest())).rows}
    assert len(models) == 16
    assert models["bigscience/bloom"].parameters == 176_247_271_424
    assert models["bigscience/bloomz-7b1-mt"].base_model == "bigscience/bloom-7b1"
    assert {model.licence for model in models.values()} == {"bigscience-rail-1.0"}
    assert {len(model.languages) for model in models.values()} == {46 + 13}
    assert {published.base for published in read_catalogue()} - {""} < models.keys()


async def test_a_child_carries_its_parents_licence(registry):
    await registry.add_version("base", licence="bigscience-rail-1.0")
    child = await registry.add_version("child", licence="", parent="base")
    assert (child.licence, child.parent) == ("bigscience-rail-1.0", "base@1")
    assert (await registry.models.get("child")).base_model == "base"


@pytest.mark.parametrize("model", ["child", "base"])
async def test_a_child_cannot_shed_its_parents_licence(registry, model):
    await registry.add_version("base", licence="bigscience-rail-1.0")
    with pytest.raises(InvalidArgument, match=r"'mit' would replace 'bigscience-rail-1\.0' of its parent base@1"):
        await registry.add_version(model, licence="mit", parent="base")


async def test_a_child_cannot_shed_it_by_way_of_a_model_under_another_licence_either(registry):
    await registry.add_version("base", licence="bigscience-rail-1.0")
    await registry.add_version("free", licence="mit")
    with pytest.raises(InvalidArgument, match=r"'free' is under 'mit'.*choose another model name"):
        await registry.add_version("free", licence="", parent="base")


async def test_a_first_version_needs_a_licence(registry):
    with pytest.raises(InvalidArgument, match="licence '' is not allowed"):
        await registry.add_version(licence="")


async def test_a_version_names_datasets_that_exist(registry):
    with pytest.raises(NotFound, match="no dataset 'gone'"):
        await registry.add_version(datasets=["gone"])


async def test_a_version_that_is_refused_leaves_no_model_behind(registry):
    with pytest.raises(NotFound):
        await registry.add_version(parent="nobody")
    with pytest.raises(NotFound):
        await registry.models.get("seedling")


async def test_lineage_goes_from_the_nearest_ancestor_to_the_farthest(registry):
    await registry.add_version("a")
    await registry.add_version("b", licence="", parent="a")
    await registry.add_version("c", licence="", parent="b@1")
    assert [version.name for version in await registry.versions.lineage("c")] == ["b@1", "a@1"]


async def test_versions_are_listed_newest_first_of_one_model_or_of_all(registry):
    for model in ("a", "b", "a"):
        await registry.add_version(model)
    listed = await registry.versions.list_versions("", PageRequest(size=2))
    assert [version.name for version in listed.rows] == ["a@2", "b@1"]
    rest = await registry.versions.list_versions("", PageRequest(size=2, token=listed.next_token))
    assert [version.name for version in rest.rows] == ["a@1"]
    assert [version.name for version in (await registry.versions.list_versions("a", PageRequest())).rows] == [
        "a@2",
        "a@1",
    ]
    with pytest.raises(NotFound):
        await registry.versions.list_versions("z", PageRequest())


async def test_a_model_is_created_once(registry):
    await registry.models.create(NewModel(name="org/tulip", licence="mit", languages=["nl"]))
    with pytest.raises(AlreadyExists, match="'org/tulip' exists already"):
        await registry.models.create(NewModel(name="org/tulip", licence="mit"))
    with pytest.raises(FailedPrecondition, match="has no version yet"):
        await registry.aliases.resolve("org/tulip")


@pytest.mark.parametrize("name", ["", "A", "a/b/c", "a@1", "../a", "a/", "é", "-a", "a" * 201, "a\n"])
async def test_a_name_that_would_not_travel_well_is_refused(registry, name):
    with pytest.raises(InvalidArgument, match="is not allowed; use a-z"):
        await registry.models.create(NewModel(name=name, licence="mit"))


async def test_a_page_token_that_was_not_given_out_is_refused(registry):
    forged = base64.urlsafe_b64encode(b'["models", 7]').decode()
    for token in ("x", "é", "WyJtb2RlbHMiLG51bGxd", "WzEsMl0=", "AAAA", forged):
        with pytest.raises(InvalidArgument, match="is not from this list; leave it empty"):
            await registry.models.list_models(PageRequest(token=token))
