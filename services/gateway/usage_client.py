"""Where the gateway's counts go, and what projects may use comes from: the registry."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import grpc
from anthesis.v1 import project_pb2 as pb
from anthesis.v1 import project_pb2_grpc as pb_grpc

from services.gateway.metering import Allowance, Counts, Used
from services.gateway.upstream import upstream

TIMEOUT_S = 10.0


class RegistryUsageClient:
    """A `UsageClient`."""

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        self._stub: pb_grpc.ProjectServiceAsyncStub = pb_grpc.ProjectServiceStub(channel)
        self._name = f"the registry at {address}"

    async def report(
        self, batch_id: str, used: Mapping[Used, Counts], projects: Sequence[str]
    ) -> Mapping[str, Allowance]:
        usage = [pb.UsageRecord(**asdict(by), **asdict(counts)) for by, counts in used.items()]
        request = pb.ReportUsageRequest(batch_id=batch_id if usage else "", usage=usage, projects=projects)
        with upstream(self._name):
            answer = await self._stub.ReportUsage(request, timeout=TIMEOUT_S)
        return {
            found.project: Allowance(
                requests_per_minute=found.requests_per_minute,
                tokens_per_day=found.tokens_per_day,
                tokens_today=found.tokens_today,
            )
            for found in answer.allowances
        }
