"""Projects: what is one's own on a platform that others use as well."""

from collections.abc import AsyncGenerator, Sequence
from datetime import date

import grpc

from anthesis.rpc import PAGE_SIZE, pages, unary
from anthesis.v1 import project_pb2 as pb
from anthesis.v1.project_pb2_grpc import ProjectServiceStub


class Projects:
    """A key of a project sees that alone; making and changing projects needs a platform admin's key."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = ProjectServiceStub(channel)

    async def create(self, name: str, *, description: str = "", quotas: pb.Quotas | None = None) -> pb.Project:
        """Raises AlreadyExistsError, InvalidArgumentError."""
        request = pb.CreateProjectRequest(name=name, description=description, quotas=quotas)
        return (await unary(self._stub.CreateProject(request))).project

    async def list(self) -> Sequence[pb.Project]:
        request = pb.ListProjectsRequest(page_size=PAGE_SIZE)
        return [project async for page in pages(self._stub.ListProjects, request) for project in page.projects]

    async def get(self, name: str) -> pb.Project:
        """With what counts against its quotas now. Raises NotFoundError."""
        return (await unary(self._stub.GetProject(pb.GetProjectRequest(name=name)))).project

    async def usage(
        self, *, project: str = "", since: date | None = None, until: date | None = None
    ) -> AsyncGenerator[pb.UsageRecord, None]:
        """What was used on days (UTC) from `since` to `until`, newest first; needs an admin's key."""
        request = pb.ListUsageRequest(
            project=project,
            start_day=since.isoformat() if since else "",
            end_day=until.isoformat() if until else "",
            page_size=PAGE_SIZE,
        )
        async for page in pages(self._stub.ListUsage, request):
            for usage in page.usage:
                yield usage

    async def update(
        self,
        name: str,
        *,
        description: str | None = None,
        archived: bool | None = None,
        quotas: pb.Quotas | None = None,
    ) -> pb.Project:
        """Set what is given, also of the quotas (0: no limit). Raises NotFoundError.

        An archived project's keys are worth nothing; what it has stays.
        """
        request = pb.UpdateProjectRequest(name=name, description=description, archived=archived, quotas=quotas)
        return (await unary(self._stub.UpdateProject(request))).project
