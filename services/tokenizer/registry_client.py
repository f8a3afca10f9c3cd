"""What the tokenizer service asks the registry for the project of whoever calls: the store itself knows no projects."""

from collections.abc import Iterable

import grpc
from anthesis.channel import open_aio_channel
from anthesis.v1 import project_pb2, project_pb2_grpc, registry_pb2, registry_pb2_grpc

from services.common.auth import project_metadata
from services.common.errors import NotFound, Unavailable

TIMEOUT_S = 10.0


class RegistryClient:
    def __init__(self, address: str, service_key: str) -> None:
        self._address = address
        self._service_key = service_key
        self._channel: grpc.aio.Channel | None = None

    async def check_readable(self, digests: Iterable[str]) -> None:
        """Raise NotFound for an artifact that the caller's project may not read."""
        stub: registry_pb2_grpc.RegistryServiceAsyncStub = registry_pb2_grpc.RegistryServiceStub(self._open())
        try:
            for digest in digests:
                await stub.GetArtifact(registry_pb2.GetArtifactRequest(digest=digest), timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from error

    async def note(self, digest: str, size_bytes: int) -> None:
        """Tell that the caller's project may read an artifact that was made for it."""
        stub: project_pb2_grpc.ProjectServiceAsyncStub = project_pb2_grpc.ProjectServiceStub(self._open())
        request = project_pb2.NoteArtifactRequest(digest=digest, size_bytes=size_bytes)
        try:
            await stub.NoteArtifact(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from error

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:  # here and not in __init__: a channel belongs to the running event loop
            self._channel = open_aio_channel(self._address, self._service_key, metadata=project_metadata)
        return self._channel

    def _translate(self, error: grpc.aio.AioRpcError) -> NotFound | Unavailable:
        if error.code() == grpc.StatusCode.NOT_FOUND:
            return NotFound(error.details() or "")
        return Unavailable(f"the registry at {self._address} cannot say what the project may read: {error.details()}")
