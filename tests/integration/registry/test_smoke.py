from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub

from tests.support.registry_server import running_registry


async def test_a_fresh_registry_lists_the_catalogue():
    async with running_registry() as registry:
        answer = await RegistryServiceStub(registry.channel()).ListModels(pb.ListModelsRequest())
    assert len(answer.models) == 16
