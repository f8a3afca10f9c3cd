"""The registry, as the worker calls it."""

import grpc
from anthesis.channel import open_aio_channel
from anthesis.v1 import registry_pb2, registry_pb2_grpc

from services.common.errors import Unavailable
from services.inference.loaded_version import AssignedVersion, VersionStatus

HEARTBEAT_TIMEOUT_S = 5.0


class RegistryClient:
    """A `Registry` over gRPC. Make it inside the running event loop."""

    def __init__(self, address: str, service_key: str) -> None:
        self._address = address
        self._channel = open_aio_channel(address, service_key)
        self._stub: registry_pb2_grpc.RegistryServiceAsyncStub = registry_pb2_grpc.RegistryServiceStub(self._channel)

    async def heartbeat(
        self, worker_id: str, address: str, device: str, versions: list[VersionStatus]
    ) -> list[AssignedVersion]:
        request = registry_pb2.HeartbeatWorkerRequest(
            worker_id=worker_id,
            address=address,
            device=device,
            models=[
                registry_pb2.WorkerModel(
                    version=version.name,
                    state=version.state,
                    error=version.error,
                    max_sequence_tokens=version.max_sequence_tokens,
                    load=version.load,
                )
                for version in versions
            ],
        )
        try:
            response = await self._stub.HeartbeatWorker(request, timeout=HEARTBEAT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"registry at {self._address}: {error.code().name}: {error.details()}") from error
        return [
            AssignedVersion(
                version.name, tuple((file.path, file.digest) for file in version.files), version.tokenizer_digest
            )
            for version in response.assigned
        ]

    async def close(self) -> None:
        await self._channel.close()
