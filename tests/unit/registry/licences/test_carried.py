"""What versions inherit, and what goes along with them."""

import random

import pytest

from services.common.auth import Principal
from services.common.errors import InvalidArgument, NotFound
from services.registry import versions
from services.registry.checkpoints import File
from services.registry.jobs import NewJob
from services.registry.leases import Succeeded
from services.registry.licences.builtin import BUILTIN, digest_text, read_text
from services.registry.licences.expression import parse
from services.registry.licences.service import NewLicence
from services.registry.licences.terms import use_restrictions
from tests.support.registry_data import store_checkpoint

RAIL = "bigscience-rail-1.0"
TEXTS = {licence.id: read_text(licence) for licence in BUILTIN}


def texts_of(registry, version):
    """Path -> text of what goes along with a version."""
    return {f["path"]: registry.artifacts.read_bytes(f["digest"]).decode() for f in version.files if f["carried"]}


def check_carries_everything(texts, version, parents):
    """Raise AssertionError or KeyError unless `texts` hold what a version made from RAIL `parents` has to carry."""
    for licence in parse(version.licence):
        assert texts[f"LICENSES/{licence}.txt"] == TEXTS[licence]
    assert use_restrictions(TEXTS[RAIL]) in texts["USE_RESTRICTIONS"]
    assert "as an enforceable provision" in texts["USE_RESTRICTIONS"]
    assert "BigScience" in texts["NOTICE"]
    assert "Nobody named here endorses this model" in texts["NOTICE"]
    for parent in parents:
        assert parent in texts["NOTICE"]
        assert parent in texts["CHANGES"]
    assert "2026-01-01 00:00" in texts["CHANGES"]


async def fine_tuned(registry, base="bloom"):
    """A version that a job made from a RAIL model."""
    spec = await registry.fine_tune_spec(base=base)
    await registry.add_version("bloom", licence=RAIL)
    await registry.licences.accept(Principal("key", "ada", "trainer"), RAIL, digest_text(TEXTS[RAIL]))
    job = await registry.jobs.create(NewJob(spec=spec, created_by="ada"))
    await registry.leases.acquire(job.id, "w1")
    done = await registry.leases.finish(job.id, 1, Succeeded(store_checkpoint(registry.artifacts).files))
    return job, await registry.aliases.resolve(done.model_version)


async def test_a_fine_tune_carries_all_that_its_base_obliges_it_to(registry):
    job, version = await fine_tuned(registry)
    assert version.licence == RAIL
    texts = texts_of(registry, version)
    check_carries_everything(texts, version, ["bloom@1"])
    trained = f"sprout@1 (2026-01-01 00:00): trained by job {job.id} from the weights of bloom@1, which it changed"
    assert trained in texts["CHANGES"]
    assert "on the data tasks" in texts["CHANGES"]
    assert "bloom@1 (2026-01-01 00:00): imported; this registry changed none of its files" in texts["CHANGES"]
    assert version.size_bytes == sum(file["size_bytes"] for file in version.files)


async def test_the_check_of_it_notices_each_loss(registry):
    _, version = await fine_tuned(registry)
    texts = texts_of(registry, version)
    assert texts.keys() == {"LICENSES/bigscience-rail-1.0.txt", "USE_RESTRICTIONS", "NOTICE", "CHANGES"}
    for lost in texts:
        for damaged in (texts | {lost: ""}, {path: text for path, text in texts.items() if path != lost}):
            with pytest.raises((AssertionError, KeyError)):
                check_carries_everything(damaged, version, ["bloom@1"])


async def test_a_merge_keeps_the_licences_of_all_it_was_made_from(registry):
    await registry.add_version("bloom", licence=RAIL)
    await registry.add_version("other", licence="mit")
    merged = await registry.add_version("merged", licence="", parent="bloom", other_parents=["other"])
    assert merged.licence == "bigscience-rail-1.0 AND mit"
    assert (merged.parent, merged.other_parents) == ("bloom@1", ["other@1"])
    check_carries_everything(texts_of(registry, merged), merged, ["bloom@1", "other@1"])
    assert "imported as made from bloom@1 and other@1" in texts_of(registry, merged)["CHANGES"]
    assert [version.name for version in await registry.versions.lineage("merged")] == ["bloom@1", "other@1"]
    child = await registry.add_version("child", licence="", parent="merged")
    assert child.licence == merged.licence
    assert [version.name for version in await registry.versions.lineage("child")] == ["merged@1", "bloom@1", "other@1"]


async def test_a_licence_is_added_and_none_is_taken_away(registry):
    await registry.add_version("bloom", licence=RAIL)
    child = await registry.add_version("child", licence=f"MIT AND {RAIL}", parent="bloom")
    assert child.licence == "bigscience-rail-1.0 AND mit"
    for model, licence in (("shed", RAIL), ("shed", "mit"), ("shed", "apache-2.0 AND mit")):
        with pytest.raises(InvalidArgument, match=r"replace 'bigscience-rail-1\.0 AND mit' of its parent child@1"):
            await registry.add_version(model, licence=licence, parent="child")


async def test_parents_are_named_once_and_the_first_in_its_place(registry):
    await registry.add_version("bloom", licence=RAIL)
    with pytest.raises(InvalidArgument, match="name a version twice"):
        await registry.add_version("m", licence="", parent="bloom", other_parents=["bloom@1"])
    with pytest.raises(InvalidArgument, match=r"other_parents=\['bloom'\] without parent"):
        await registry.add_version("m", licence="", other_parents=["bloom"])
    with pytest.raises(NotFound):
        await registry.add_version("m", licence="", parent="bloom", other_parents=["gone"])


async def check_a_family(registry):
    """Raise AssertionError where a version of a family drawn at random has lost a licence of what it came from."""
    await registry.licences.create(NewLicence(id="lab", name="Lab", text="Lab.", must_accept=False))
    drawn = random.Random(6)
    came_from = {}  # version -> the licences of its first ancestors
    for number in range(14):
        parents = drawn.sample(list(came_from), min(len(came_from), drawn.randint(0, 3)))
        licence = "" if parents else drawn.choice(["mit", "apache-2.0", RAIL, "lab"])
        changes = {"parent": parents[0], "other_parents": parents[1:]} if parents else {}
        version = await registry.add_version(f"m{number}", licence=licence, **changes)
        expected = {known for parent in parents for known in came_from[parent]} or {licence}
        came_from[version.name] = expected
        assert set(parse(version.licence)) == expected
        assert {f"LICENSES/{known}.txt" for known in expected} <= {file["path"] for file in version.files}


async def test_in_any_family_no_version_loses_a_licence_of_an_ancestor(registry):
    await check_a_family(registry)


async def test_the_check_of_it_notices_a_merge_that_inherits_from_its_first_parent_alone(registry, monkeypatch):
    right = versions.decide_licence
    monkeypatch.setattr(
        versions,
        "decide_licence",
        lambda *arguments: right(*arguments[:-1], arguments[-1][:1]),  # the parents come last
    )
    with pytest.raises(AssertionError):
        await check_a_family(registry)


async def test_notices_that_an_import_brings_are_kept_and_go_along_with_what_is_made_from_it(registry):
    brought = {"NOTICE": b"Ours, 2022", "LICENSE": b"A licence", "LICENSES/mit.txt": b"Another", "upstream/x": b"x"}
    stored = store_checkpoint(registry.artifacts)
    files = [File(path=path, digest=registry.artifacts.write_bytes(data)) for path, data in brought.items()]
    base = await registry.add_version("org/base", licence="mit", files=(*stored.files, *files))
    kept = {f"upstream/org/base@1/{path}": data.decode() for path, data in brought.items()}
    bytes_of = {f["path"]: registry.artifacts.read_bytes(f["digest"]) for f in base.files}
    assert {path: bytes_of[path].decode() for path in kept} == kept
    assert bytes_of["LICENSES/mit.txt"].decode() == TEXTS["mit"]
    assert bytes_of["NOTICE"] != b"Ours, 2022"
    child = await registry.add_version("child", licence="", parent="org/base")
    grandchild = await registry.add_version("grandchild", licence="", parent="child")
    for heir in (child, grandchild):
        assert kept.items() <= texts_of(registry, heir).items()
        assert len({file["path"] for file in heir.files}) == len(heir.files)


async def test_a_version_under_a_free_licence_carries_its_text_and_no_restrictions(registry):
    version = await registry.add_version(licence="apache-2.0")
    assert texts_of(registry, version).keys() == {"LICENSES/apache-2.0.txt", "NOTICE", "CHANGES"}
    assert "BigScience" not in texts_of(registry, version)["NOTICE"]
