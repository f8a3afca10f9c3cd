"""API keys."""

from collections.abc import Sequence

import grpc

from anthesis.rpc import PAGE_SIZE, pages, unary
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub


class Keys:
    """Makes and revokes API keys; needs an admin's."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = RegistryServiceStub(channel)

    async def create(self, principal: str, role: "pb.Role.ValueType" = pb.ROLE_USER) -> pb.CreateApiKeyResponse:
        """A new key; its `secret` is shown this once."""
        return await unary(self._stub.CreateApiKey(pb.CreateApiKeyRequest(principal=principal, role=role)))

    async def list(self) -> Sequence[pb.ApiKey]:
        request = pb.ListApiKeysRequest(page_size=PAGE_SIZE)
        return [key async for page in pages(self._stub.ListApiKeys, request) for key in page.keys]

    async def revoke(self, key_id: str) -> pb.ApiKey:
        """Raises NotFoundError."""
        return (await unary(self._stub.RevokeApiKey(pb.RevokeApiKeyRequest(id=key_id)))).key
