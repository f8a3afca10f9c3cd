import grpc
import pytest
from anthesis.channel import open_aio_channel
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1 import registry_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support.registry_data import store_checkpoint

NO_TIMES = [Timestamp(seconds=2**62), Timestamp(seconds=-(2**62)), Timestamp(nanos=-1), Timestamp(nanos=2**31 - 1)]


@pytest.fixture
async def stub(registry):
    """As admin; with `seedling@1` and `seedling@2`."""
    stub = registry_pb2_grpc.RegistryServiceStub(registry.channel())
    stored = store_checkpoint(registry.artifacts)
    files = [pb.ModelFile(path=file.path, digest=file.digest) for file in stored.files]
    for _ in range(2):
        version = pb.ModelVersion(
            model="seedling", licence="mit", tokenizer_digest=stored.tokenizer_digest, files=files
        )
        await stub.CreateModelVersion(pb.CreateModelVersionRequest(version=version))
    return stub


async def refused(call, code):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    assert error.value.code() == code, error.value.details()
    return error.value.details()


async def set_alias(stub, version, **options):
    return (await stub.SetAlias(pb.SetAliasRequest(name="flower", version=version, **options))).alias


async def test_a_history_names_the_caller_and_answers_who_was_live(registry, stub):
    key = (await stub.CreateApiKey(pb.CreateApiKeyRequest(principal="ada", role=pb.ROLE_TRAINER))).secret
    await set_alias(stub, "seedling@1", if_generation=0)
    async with open_aio_channel(registry.address, key) as channel:
        theirs = registry_pb2_grpc.RegistryServiceStub(channel)
        moved = await set_alias(theirs, "seedling@2", if_generation=1, reason="plus juste en français")
    assert (moved.version, moved.generation) == ("seedling@2", 2)
    back = (await stub.RollbackAlias(pb.RollbackAliasRequest(name="flower", if_generation=2))).alias
    assert (back.version, back.generation) == ("seedling@1", 3)
    changes = (await stub.ListAliasChanges(pb.ListAliasChangesRequest(name="flower"))).changes
    kinds = [pb.AliasChangeKind.Name(change.kind).removeprefix("ALIAS_CHANGE_KIND_") for change in changes]
    assert kinds == ["ROLLBACK", "SET", "SET"]
    assert [change.principal for change in changes] == ["admin", "ada", "admin"]
    assert (changes[0].restored_generation, changes[1].reason) == (1, "plus juste en français")
    for change in changes:
        found = await stub.ResolveAlias(pb.ResolveAliasRequest(name="flower", at=change.time))
        assert (found.change, found.version.name) == (change, change.version)
    now = await stub.ResolveAlias(pb.ResolveAliasRequest(name="flower"))
    to_come = await stub.ResolveAlias(pb.ResolveAliasRequest(name="flower", at=Timestamp(seconds=2**37)))
    assert now == to_come
    assert now.change == changes[0]


async def test_a_mover_who_was_beaten_is_aborted_and_told_by_what(stub):
    await set_alias(stub, "seedling@1")
    message = await refused(set_alias(stub, "seedling@2", if_generation=0), grpc.StatusCode.ABORTED)
    assert message == (
        "alias 'flower' is at generation 1 (seedling@1), not at if_generation=0; "
        "see `anthesis aliases history flower`, then name its generation"
    )
    await refused(set_alias(stub, "seedling@2", if_generation=2**32 - 1), grpc.StatusCode.ABORTED)
    assert (await set_alias(stub, "seedling@2", if_generation=1)).generation == 2


async def test_a_deleted_alias_is_listed_no_more_and_a_deployed_one_is_not_deleted(stub):
    await set_alias(stub, "seedling@1")
    await stub.CreateDeployment(pb.CreateDeploymentRequest(deployment=pb.Deployment(name="garden", target="flower")))
    delete = pb.DeleteAliasRequest(name="flower")
    message = await refused(stub.DeleteAlias(delete), grpc.StatusCode.FAILED_PRECONDITION)
    assert "followed by deployment 'garden'; `anthesis undeploy garden`" in message
    await stub.DeleteDeployment(pb.DeleteDeploymentRequest(name="garden"))
    await stub.DeleteAlias(delete)
    assert not (await stub.ListAliases(pb.ListAliasesRequest())).aliases
    for call in (
        stub.ResolveModel(pb.ResolveModelRequest(name="flower")),
        stub.ResolveAlias(pb.ResolveAliasRequest(name="flower")),
        stub.DeleteAlias(delete),
    ):
        await refused(call, grpc.StatusCode.NOT_FOUND)


async def test_what_is_no_time_or_no_generation_is_refused(stub):
    await set_alias(stub, "seedling@1")
    for time in NO_TIMES:
        request = pb.ResolveAliasRequest(name="flower", at=time)
        assert "which is no time" in await refused(stub.ResolveAlias(request), grpc.StatusCode.INVALID_ARGUMENT)
    for generation in (0, 2, 2**31, 2**32 - 1):
        request = pb.RollbackAliasRequest(name="flower", generation=generation)
        await refused(stub.RollbackAlias(request), grpc.StatusCode.NOT_FOUND)
    await refused(stub.RollbackAlias(pb.RollbackAliasRequest(name="flower")), grpc.StatusCode.FAILED_PRECONDITION)
    await refused(set_alias(stub, "seedling@2", reason="a\0b"), grpc.StatusCode.INVALID_ARGUMENT)
    assert (await set_alias(stub, "seedling@1")).generation == 1


@pytest.mark.parametrize("name", ["", "nobody", "../flower", "flow\0er", "é" * 10_000])
async def test_a_name_that_is_none_is_not_found(stub, name):
    for call in (
        stub.ResolveAlias(pb.ResolveAliasRequest(name=name)),
        stub.ListAliasChanges(pb.ListAliasChangesRequest(name=name)),
        stub.RollbackAlias(pb.RollbackAliasRequest(name=name)),
        stub.DeleteAlias(pb.DeleteAliasRequest(name=name)),
    ):
        assert "`anthesis aliases list`" in await refused(call, grpc.StatusCode.NOT_FOUND)
