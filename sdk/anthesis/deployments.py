"""Which versions the inference workers hold."""

import asyncio
import time
from collections.abc import Sequence

import grpc

from anthesis.errors import DeadlineExceededError, FailedPreconditionError, NotFoundError
from anthesis.rpc import PAGE_SIZE, pages, unary
from anthesis.v1 import registry_pb2 as pb
from anthesis.v1.registry_pb2_grpc import RegistryServiceStub

POLL_S = 0.5


class Deployments:
    """Deploys versions to workers and waits until they answer."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = RegistryServiceStub(channel)

    async def create(self, target: str, *, name: str = "", replicas: int = 0) -> pb.Deployment:
        """Ask workers (0: all of them) to hold an alias or a version. Raises NotFoundError, AlreadyExistsError.

        The name defaults to the target, with "-" for "/" and "@".
        """
        name = name or target.replace("/", "-").replace("@", "-")
        deployment = pb.Deployment(name=name, target=target, replicas=replicas)
        request = pb.CreateDeploymentRequest(deployment=deployment)
        return (await unary(self._stub.CreateDeployment(request))).deployment

    async def list(self) -> Sequence[pb.Deployment]:
        request = pb.ListDeploymentsRequest(page_size=PAGE_SIZE)
        return [item async for page in pages(self._stub.ListDeployments, request) for item in page.deployments]

    async def delete(self, name: str) -> None:
        """Let workers unload it. Raises NotFoundError."""
        await unary(self._stub.DeleteDeployment(pb.DeleteDeploymentRequest(name=name)))

    async def wait(self, name: str, *, timeout_s: float = 600.0) -> pb.Deployment:
        """The deployment, once it serves its version from as many workers as were asked for (0: at least one).

        Raises FailedPreconditionError with the workers' errors, DeadlineExceededError, NotFoundError.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = next((item for item in await self.list() if item.name == name), None)
            if found is None:
                raise NotFoundError(f"no deployment {name!r}; `anthesis deploy {name}` makes it")
            serves = found.serving_version in ("", found.version)  # "": a registry of an older release
            if serves and found.ready_replicas >= max(1, found.replicas):
                return found
            if found.errors:
                raise FailedPreconditionError(f"no worker could load {found.version}: {'; '.join(found.errors)}")
            if time.monotonic() > deadline:
                raise DeadlineExceededError(
                    f"{found.version} is ready on {found.ready_replicas} of {max(1, found.replicas)} workers "
                    f"after {timeout_s:g} s; `anthesis status` shows the workers"
                )
            await asyncio.sleep(POLL_S)
