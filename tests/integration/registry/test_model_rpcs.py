"""Deleting, tagging, searching and describing models over gRPC."""

import grpc
import pytest
from anthesis.v1 import job_pb2, job_pb2_grpc
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub

from tests.support.registry_data import store_checkpoint


@pytest.fixture
def stub(registry):
    return RegistryServiceStub(registry.channel())


async def add_version(registry, stub, **fields):
    stored = store_checkpoint(registry.artifacts)
    files = [pb.ModelFile(path=file.path, digest=file.digest) for file in stored.files]
    values = {"model": "seedling", "licence": "mit", "tokenizer_digest": stored.tokenizer_digest} | fields
    request = pb.CreateModelVersionRequest(version=pb.ModelVersion(files=files, **values))
    return (await stub.CreateModelVersion(request)).version


async def listed(stub, **query):
    return [version.name for version in (await stub.ListModelVersions(pb.ListModelVersionsRequest(**query))).versions]


async def test_a_version_is_deleted_and_brought_back(registry, stub):
    made = await add_version(registry, stub, tags=["Gold"])
    assert (made.state, made.created_by, list(made.tags)) == (pb.VERSION_STATE_READY, "admin", ["gold"])
    deleted = (await stub.DeleteModelVersion(pb.DeleteModelVersionRequest(name="seedling@1"))).version
    assert (deleted.state, deleted.deleted_by) == (pb.VERSION_STATE_DELETED, "admin")
    assert deleted.expire_time.seconds - deleted.delete_time.seconds == 30 * 86_400
    assert (await listed(stub), await listed(stub, show_deleted=True)) == ([], ["seedling@1"])
    with pytest.raises(grpc.aio.AioRpcError, match="`anthesis models undelete seedling@1`") as refused:
        await stub.ResolveModel(pb.ResolveModelRequest(name="seedling@1"))
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert (await stub.DeleteModel(pb.DeleteModelRequest(name="seedling"))).model.deleted_by == "admin"
    assert not (await stub.UndeleteModel(pb.UndeleteModelRequest(name="seedling"))).model.HasField("delete_time")
    back = (await stub.UndeleteModelVersion(pb.UndeleteModelVersionRequest(name="seedling@1"))).version
    assert back == made


@pytest.mark.parametrize(
    ("alias", "name", "code"),
    [
        ("flower", "seedling@1", grpc.StatusCode.FAILED_PRECONDITION),
        ("", "seedling@2", grpc.StatusCode.NOT_FOUND),
        ("", "../seedling@1\0", grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_a_refused_deletion_changes_nothing(registry, stub, alias, name, code):
    await add_version(registry, stub)
    if alias:
        await stub.SetAlias(pb.SetAliasRequest(name=alias, version="seedling@1"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.DeleteModelVersion(pb.DeleteModelVersionRequest(name=name))
    assert refused.value.code() == code
    assert await listed(stub) == ["seedling@1"]


async def test_each_field_of_a_list_request_is_asked_for(registry, stub):
    """A field that the server does not read would find what it should not."""
    await add_version(registry, stub)
    strings = (
        "text",
        "licence",
        "language",
        "tag",
        "base_model",
        "parent",
        "dataset",
        "created_by",
        "output_model",
        "base",
        "after",
    )
    jobs = job_pb2_grpc.JobServiceStub(registry.channel())
    lists = (
        (stub.ListModels, pb.ListModelsRequest, "models"),
        (stub.ListModelVersions, pb.ListModelVersionsRequest, "versions"),
        (jobs.ListJobs, job_pb2.ListJobsRequest, "jobs"),
    )
    for call, request, rows in lists:
        known = {field.name for field in request.DESCRIPTOR.fields}
        for name in filter(known.__contains__, strings):
            assert not getattr(await call(request(**{name: "job-0" if name == "after" else "nobody"})), rows), name
        late = request(start_time={"seconds": 4_000_000_000})
        early = request(end_time={"seconds": 1})
        for asked in (late, early):
            assert not getattr(await call(asked), rows)
        with pytest.raises(grpc.aio.AioRpcError, match="no time of the years 1 to 9999"):
            await call(request(end_time={"seconds": 2**62}))
        paging = {"page_size", "page_token", "state", "model", "ready", "show_deleted", "order", "fine_tuning"}
        assert known == {*filter(known.__contains__, strings), "start_time", "end_time", *(paging & known)}
    assert await listed(stub, order=pb.LIST_ORDER_OLDEST, text="SEED") == ["seedling@1"]


async def test_tags_and_cards_are_written_and_read(registry, stub):
    await add_version(registry, stub)
    tags = await stub.UpdateModelTags(pb.UpdateModelTagsRequest(name="seedling@1", add=["a", "B"], remove=["c"]))
    assert list(tags.tags) == ["a", "b"]
    request = pb.UpdateModelCardRequest(name="seedling", text="For gardens.", if_generation=0)
    written = (await stub.UpdateModelCard(request)).card
    assert (written.generation, written.updated_by, written.sections[0].text) == (1, "admin", "For gardens.")
    with pytest.raises(grpc.aio.AioRpcError, match="at generation 1") as refused:
        await stub.UpdateModelCard(request)
    assert refused.value.code() == grpc.StatusCode.ABORTED
    read = (await stub.GetModelCard(pb.GetModelCardRequest(name="seedling@1"))).card
    assert (read.name, read.generation, read.sections[0].inherited) == ("seedling@1", 0, "For gardens.")
    assert read.markdown.startswith("---\nlicense: mit\n")


@pytest.mark.parametrize("name", ["\0", "a/../b", "x" * 10_000, "seedling@1\n", "@", "seedling@-1", "é"])
async def test_names_that_are_none_are_not_found_and_break_nothing(registry, stub, name):
    await add_version(registry, stub)
    calls = (
        stub.DeleteModelVersion(pb.DeleteModelVersionRequest(name=name)),
        stub.UndeleteModelVersion(pb.UndeleteModelVersionRequest(name=name)),
        stub.DeleteModel(pb.DeleteModelRequest(name=name)),
        stub.UndeleteModel(pb.UndeleteModelRequest(name=name)),
        stub.UpdateModelTags(pb.UpdateModelTagsRequest(name=name, add=["a"])),
        stub.GetModelCard(pb.GetModelCardRequest(name=name)),
        stub.UpdateModelCard(pb.UpdateModelCardRequest(name=name, text="x")),
    )
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        assert len(refused.value.details() or "") < 1000
