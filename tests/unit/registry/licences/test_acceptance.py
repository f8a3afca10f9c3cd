"""Who may tune and download what; through the gateway: tests/integration/gateway/test_licences.py."""

from dataclasses import replace

import pytest

from services.common.auth import Principal
from services.common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from services.registry.checkpoints import File
from services.registry.licences.builtin import digest_text
from services.registry.licences.service import NewLicence
from services.registry.pages import PageRequest
from tests.support.registry_data import store_checkpoint

RAIL = "bigscience-rail-1.0"
ADA, BO = Principal("key-1", "ada", "user"), Principal("key-2", "bo", "user")
ADMIN, TRAINER = Principal("key-3", "root", "admin"), Principal("key-4", "trainer", "service")
LAB = NewLicence(id="lab-1.0", name="The lab's", text="Ask first.", must_accept=True)


async def accept(registry, principal=ADA, licence=RAIL):
    return await registry.licences.accept(principal, licence, (await registry.licences.get(licence)).digest)


async def weights_of(registry, **changes):
    """The digest of the weights of a new version."""
    version = await registry.add_version(**changes)
    return next(file["digest"] for file in version.files if file["path"] == "model.safetensors")


async def test_a_fine_tune_is_refused_until_its_base_is_accepted_and_nothing_is_stored(registry):
    spec = await registry.fine_tune_spec(base="bloom")
    await registry.add_version("bloom", licence=RAIL)
    with pytest.raises(FailedPrecondition) as refused:
        await registry.submit(spec=spec)
    for said in (
        "'ada' has first to accept what bloom@1 is under",
        "bigscience-rail-1.0 (BigScience RAIL License v1.0)",
        "1. In any way that violates any applicable",
        "13. To generate or disseminate",
        "`anthesis licences accept bigscience-rail-1.0`",
    ):
        assert said in str(refused.value)
    assert not (await registry.jobs.list_jobs("", PageRequest())).rows
    await accept(registry)
    assert (await registry.submit(spec=spec)).spec["base"] == "bloom@1"


async def test_what_one_accepts_another_has_still_to_accept(registry):
    spec = await registry.fine_tune_spec(base="bloom")
    await registry.add_version("bloom", licence=RAIL)
    await accept(registry, BO)
    with pytest.raises(FailedPrecondition, match="'ada' has first to accept"):
        await registry.submit(spec=spec)


async def test_a_service_accepts_nothing_and_an_admin_does_as_everybody(registry):
    digest = await weights_of(registry, model="bloom", licence=RAIL)
    await registry.licences.check_download(TRAINER, digest)
    with pytest.raises(FailedPrecondition, match="'root' has first to accept"):
        await registry.licences.check_download(ADMIN, digest)


async def test_weights_and_states_are_downloaded_only_by_who_has_accepted_and_descriptions_by_all(registry):
    stored = store_checkpoint(registry.artifacts)
    state = File(path="state/layer-00001.safetensors", digest=registry.artifacts.write_bytes(b"a state"))
    version = await registry.add_version("bloom", licence=RAIL, files=(*stored.files, state))
    covered = {"model.safetensors", "state/layer-00001.safetensors"}
    for file in version.files:
        if file["path"] in covered:
            with pytest.raises(FailedPrecondition, match=rf"what artifact {file['digest']} is under"):
                await registry.licences.check_download(ADA, file["digest"])
        else:
            await registry.licences.check_download(ADA, file["digest"])
    assert {"config.json", "LICENSES/bigscience-rail-1.0.txt", "USE_RESTRICTIONS"} <= {f["path"] for f in version.files}
    await accept(registry)
    for file in version.files:
        await registry.licences.check_download(ADA, file["digest"])


async def test_registering_the_same_weights_under_a_free_licence_does_not_free_them(registry):
    digest = await weights_of(registry, model="bloom", licence=RAIL)
    assert await weights_of(registry, model="mine", licence="mit") == digest
    with pytest.raises(FailedPrecondition, match=RAIL):
        await registry.licences.check_download(ADA, digest)


async def test_free_licences_and_what_is_no_file_of_a_version_need_no_acceptance(registry):
    await registry.licences.check_download(ADA, await weights_of(registry))
    await registry.licences.check_download(ADA, registry.artifacts.write_bytes(b"a dataset"))
    assert (await registry.submit(spec=await registry.fine_tune_spec())).id


async def test_an_acceptance_says_who_when_which_text_and_with_which_key_and_is_made_once(registry):
    first = await accept(registry)
    registry.clock.advance(60)
    again = await accept(registry)
    assert (again.id, again.time) == (first.id, first.time)
    assert (first.principal, first.licence, first.key_id) == ("ada", RAIL, "key-1")
    assert first.digest == "sha256:bd59d4cae17c8b7cc11d63ec0543d9fa48b51d628706f4407676521457d0ac78"
    assert [row.id for row in (await registry.licences.list_acceptances(ADA, "", PageRequest())).rows] == [first.id]


async def test_only_the_text_that_holds_can_be_accepted(registry):
    for digest in ("", "sha256:" + "0" * 64, "x" * 10_000, (await registry.licences.get("mit")).digest):
        with pytest.raises(
            FailedPrecondition, match=r"not that of licence bigscience-rail-1\.0, sha256:bd59.*read its"
        ):
            await registry.licences.accept(ADA, RAIL, digest)
    with pytest.raises(NotFound, match="no licence 'gpl'"):
        await registry.licences.accept(ADA, "gpl", "")
    assert not (await registry.licences.list_acceptances(ADMIN, "", PageRequest(), everyone=True)).rows


async def test_others_acceptances_are_for_admins(registry):
    await accept(registry, ADA)
    await accept(registry, BO)
    listed = await registry.licences.list_acceptances(ADMIN, "", PageRequest(), everyone=True)
    assert [row.principal for row in listed.rows] == ["bo", "ada"]
    assert len((await registry.licences.list_acceptances(ADMIN, "bo", PageRequest())).rows) == 1
    for asked in ({"principal": "bo"}, {"principal": "", "everyone": True}):
        with pytest.raises(PermissionDenied, match="'ada' may see its own"):
            await registry.licences.list_acceptances(ADA, page=PageRequest(), **asked)


async def test_what_is_pending_is_told_to_whom_it_concerns(registry):
    await registry.add_version("bloom", licence=RAIL)
    pending = await registry.licences.pending(ADA, "", "bloom")
    assert [licence.id for licence in pending.licences] == [RAIL]
    assert (await registry.licences.pending(TRAINER, "ada", "bloom")).refusal == pending.refusal
    assert not (await registry.licences.pending(TRAINER, "", "bloom")).refusal
    with pytest.raises(PermissionDenied, match="may ask for itself only"):
        await registry.licences.pending(ADA, "bo", "bloom")
    await accept(registry)
    assert not (await registry.licences.pending(ADA, "", "bloom")).refusal


async def test_a_licence_of_an_admins_own_has_to_be_accepted_beside_the_others(registry):
    made = await registry.licences.create(LAB)
    assert made.digest == digest_text("Ask first.")
    spec = await registry.fine_tune_spec(base="bloom")
    await registry.add_version("bloom", licence=f"{RAIL} AND lab-1.0")
    await accept(registry)
    says = r"Licence lab-1\.0 \(The lab's\) states its terms in its text"
    with pytest.raises(FailedPrecondition, match=says) as refused:
        await registry.submit(spec=spec)
    assert RAIL not in str(refused.value)
    await accept(registry, licence="lab-1.0")
    assert (await registry.submit(spec=spec)).id


async def test_a_licence_never_changes(registry):
    await registry.licences.create(LAB)
    for licence_id in ("lab-1.0", "mit"):
        with pytest.raises(AlreadyExists, match="exists and does not change; register this under another id"):
            await registry.licences.create(NewLicence(id=licence_id, name="n", text="Other.", must_accept=False))
    assert (await registry.licences.get("lab-1.0")).text == "Ask first."


async def test_a_licence_that_would_not_do_is_refused(registry):
    for changes, says in (
        ({"id": "A b"}, "licence id 'A b' is not allowed"),
        ({"id": "x" * 10_000}, "is not allowed; use a-z"),
        ({"id": "a AND b"}, "is not allowed; use a-z"),
        ({"name": ""}, "name '' is not allowed"),
        ({"name": "a\nb"}, "is not allowed; give 1 to 200 printable"),
        ({"text": " \n"}, "give the licence's whole text"),
        ({"text": "a\0b"}, "without NUL"),
        ({"text": "x" * 262_145}, "text has 262145 characters"),
    ):
        with pytest.raises(InvalidArgument, match=says):
            await registry.licences.create(replace(LAB, **changes))
    assert len((await registry.licences.list_licences(PageRequest())).rows) == 3


async def test_a_version_under_a_licence_without_a_text_is_refused_with_the_remedy(registry):
    with pytest.raises(FailedPrecondition, match=r"text of licence 'openrail' is not known.*`anthesis licences create"):
        await registry.add_version(licence="openrail")
    with pytest.raises(NotFound):
        await registry.models.get("seedling")
