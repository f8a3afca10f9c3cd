"""Which artifacts a project may read, and that knowing a digest is not having the bytes."""

import hashlib
from datetime import timedelta

import pytest
from anthesis.v1 import job_pb2, licence_pb2, tokenizer_pb2
from anthesis.v1 import registry_pb2 as pb
from sqlalchemy import select

from services.common.auth import Call, current_call
from services.common.errors import InvalidArgument, NotFound
from services.registry.projects.artifacts import may_read
from services.registry.projects.service import Projects
from services.registry.projects.tables import ProjectArtifact
from services.registry.rpc.artifact_guard import ArtifactGuard, digests_in
from tests.support.projects import calling_for

DATA = b"what another project keeps to itself"
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()
A, B, C = ("sha256:" + digit * 64 for digit in "abc")


async def stream(data):
    yield data


async def upload(registry, data=DATA):
    begun = await registry.uploads.begin(current_call().principal.name, DIGEST, len(data))
    if begun.upload_id:
        row = await registry.uploads.get(current_call().principal.name, begun.upload_id, DIGEST, len(data))
        await registry.uploads.receive(row, 0, stream(data))
    return begun


async def readable(database, project, digest=DIGEST):
    async with database.read() as session:
        with calling_for(project):
            return await may_read(session, [digest])


async def test_who_knows_a_digest_alone_has_to_send_the_bytes(registry, database):
    with calling_for("lab"):
        await upload(registry)
        assert (await registry.uploads.begin("lab/ada", DIGEST, len(DATA))).upload_id == ""  # there
    with calling_for("other"):
        assert not await readable(database, "other")
        assert (await upload(registry)).upload_id  # as if it were not there
        assert (await registry.uploads.begin("other/ada", DIGEST, len(DATA))).upload_id == ""
    assert [await readable(database, project) for project in ("lab", "other", "third")] == [True, True, False]


async def test_a_project_reads_what_rows_that_it_sees_refer_to(registry, database):
    with calling_for("lab"):
        version = await registry.add_version("mine")
        await registry.add_dataset("my-rows")
    dataset = await registry.datasets.get("my-rows")
    digests = [dataset.digest, version.tokenizer_digest, *(file["digest"] for file in version.files)]
    assert len(digests) > 5  # with those that the registry added
    assert {await readable(database, "lab", digest) for digest in digests} == {True}
    assert {await readable(database, "other", digest) for digest in digests} == {False}
    await registry.add_version("shared")
    await registry.add_dataset("shared-rows")
    with calling_for("other"):
        shared = await registry.aliases.resolve("shared")
    assert {await readable(database, "other", file["digest"]) for file in shared.files} == {True}


async def test_what_was_collected_is_nobodys_any_more(registry, database, clock):
    with calling_for("lab"):
        await upload(registry)
    clock.now = clock.now.replace(year=2100)
    [gone] = [stored.name async for stored in registry.collector.collect(timedelta(days=1).total_seconds())]
    assert gone == DIGEST
    async with database.read() as session:
        assert not list(await session.scalars(select(ProjectArtifact)))


def test_every_digest_of_a_request_is_found_wherever_it_is():
    version = pb.ModelVersion(tokenizer_digest=A, files=[pb.ModelFile(digest=B), pb.ModelFile(digest=C)])
    for request, digests in (
        (pb.CreateModelVersionRequest(version=version), {A, B, C}),
        (pb.VerifyArtifactsRequest(digests=[A, B]), {A, B}),
        (pb.GetArtifactRequest(digest=A), {A}),
        (tokenizer_pb2.TrainTokenizerRequest(dataset_digests=[C]), {C}),
        (job_pb2.CreateJobRequest(pretrain=job_pb2.PretrainSpec(tokenizer_digest=B)), {B}),
        (pb.CreateModelRequest(model=pb.Model(name="a", description=f"made of {A}")), set()),
        (pb.ListModelsRequest(page_size=3), set()),
    ):
        assert set(digests_in(request)) == digests


async def test_a_request_with_a_digest_that_is_not_the_projects_is_refused(registry, database):
    guard = ArtifactGuard(database)
    with calling_for("lab"):
        await upload(registry)
    request = pb.CreateDatasetRequest(name="a", digest=DIGEST)
    for project, error in (("lab", None), ("other", NotFound), ("", None)):
        with calling_for(project) as caller:
            call = Call(caller, "RegistryService.CreateDataset")
            if error is None:
                await guard(call, request)
                continue
            with pytest.raises(error, match=f"no artifact {DIGEST} in the store; upload it first"):
                await guard(call, request)
            await guard(Call(caller, "LicenceService.AcceptLicence"), licence_pb2.AcceptLicenceRequest(digest=DIGEST))


async def test_a_service_tells_what_it_has_made_for_a_project(database, registry):
    projects = Projects(database)
    with pytest.raises(InvalidArgument, match="the call is for no project; send x-anthesis-project"):
        await projects.note_artifact(A, 1)
    with calling_for("lab"):
        await projects.note_artifact(A, 1)
        with pytest.raises(InvalidArgument, match="digest 'a' is not 'sha256:'"):
            await projects.note_artifact("a", 1)
    assert [await readable(database, project, A) for project in ("lab", "other")] == [True, False]
