import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidArgument, NotFound
from services.registry.tags import MAX_BYTES, MAX_TAGS, normal_tag


async def update(registry, name, add=(), remove=()):
    return await registry.tags.update(name, add, remove)


async def test_tags_are_added_and_removed_on_models_and_versions_apart(registry):
    await registry.add_version()
    assert await update(registry, "seedling", ["Gold Standard", "draft"]) == ["draft", "gold-standard"]
    assert await update(registry, "seedling@1", ["draft"]) == ["draft"]
    assert await update(registry, "seedling", ["gold standard", "ﬁne"], ["DRAFT", "never there"]) == [
        "fine",
        "gold-standard",
    ]
    assert (await registry.models.get("seedling")).tags == ["fine", "gold-standard"]
    assert (await registry.aliases.resolve("seedling")).tags == ["draft"]


@pytest.mark.parametrize("tag", ["", " ", "<script>", "a,b", "#a", "-a", "a\nb\0", "é" * 33, "x" * 65, "a\u202eb", "%"])
async def test_a_tag_that_is_none_is_refused_and_nothing_changes(registry, tag):
    await registry.add_version()
    with pytest.raises(InvalidArgument, match="is not allowed; use letters and digits of any script"):
        await update(registry, "seedling", ["good", tag])
    assert (await registry.models.get("seedling")).tags == []


async def test_there_are_not_more_tags_than_can_be_looked_at(registry):
    await registry.add_version()
    many = [f"tag-{number}" for number in range(MAX_TAGS)]
    await update(registry, "seedling@1", many)
    with pytest.raises(InvalidArgument, match="21 tags are too many; keep at most 20"):
        await update(registry, "seedling@1", ["one-more"])
    assert len(await update(registry, "seedling@1", ["one-more"], ["tag-0"])) == MAX_TAGS


async def test_a_tag_that_is_to_come_and_to_go_is_refused(registry):
    await registry.add_version()
    with pytest.raises(InvalidArgument, match="'gold' is to be added and removed"):
        await update(registry, "seedling", ["gold"], ["GOLD"])


@pytest.mark.parametrize("name", ["nobody", "seedling@2", "flower"])
async def test_what_is_not_there_has_no_tags(registry, name):
    await registry.add_version()
    await registry.set_alias("flower", "seedling@1")
    with pytest.raises(NotFound):
        await update(registry, name, ["gold"])


async def test_what_is_deleted_gets_no_tags(registry):
    await registry.add_version()
    await registry.deletions.delete_version("seedling@1", "ada")
    with pytest.raises(NotFound, match="was deleted"):
        await update(registry, "seedling@1", ["gold"])


@given(st.text(max_size=80))
def test_a_tag_that_is_kept_is_kept_as_it_is_and_fits(tag):
    try:
        normal = normal_tag(tag)
    except InvalidArgument:
        return
    assert normal_tag(normal) == normal
    assert len(normal.encode()) <= MAX_BYTES
