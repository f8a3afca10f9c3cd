"""PostgreSQL is killed under a running registry, and comes back."""

import asyncio

import grpc
import pytest
from anthesis.v1 import registry_pb2
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub

from tests.support.postgres import MISSING, PostgresServer, find_binaries
from tests.support.registry_server import running_registry


@pytest.mark.skipif(find_binaries() is None, reason=MISSING)
async def test_a_database_that_is_away_is_unavailable_and_is_used_again_once_it_is_back() -> None:
    binaries = find_binaries()
    assert binaries
    server = await asyncio.to_thread(PostgresServer, binaries)
    url = server.url(await asyncio.to_thread(server.create_database))
    async with running_registry(database_url=url) as registry:
        stub = RegistryServiceStub(registry.channel())

        async def ask() -> None:
            await asyncio.gather(
                stub.ListModels(registry_pb2.ListModelsRequest()),
                stub.SetAlias(registry_pb2.SetAliasRequest(name="flower", version="nobody@1")),
                return_exceptions=True,
            )
            await stub.ListModels(registry_pb2.ListModelsRequest())

        await ask()
        await asyncio.to_thread(server.kill)
        for _ in range(3):  # connections of before, then none
            with pytest.raises(grpc.aio.AioRpcError, match=r"database does not answer; .* try again") as refused:
                await ask()
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        await asyncio.to_thread(server.start)
        await ask()
