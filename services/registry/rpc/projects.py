"""ProjectService: messages in and out."""

from dataclasses import asdict
from typing import Any

from anthesis.v1 import project_pb2 as pb
from anthesis.v1 import project_pb2_grpc

from services.registry.projects.service import QUOTAS, ProjectChange, Projects
from services.registry.projects.tables import Project
from services.registry.projects.usage import Allowance, UsageLine, UsageLog, UsageQuery
from services.registry.rpc import messages

Context = Any
_USAGE = [field.name for field in pb.UsageRecord.DESCRIPTOR.fields]


class ProjectRpc(project_pb2_grpc.ProjectServiceServicer):
    def __init__(self, projects: Projects, usage: UsageLog) -> None:
        self._projects = projects
        self._usage = usage

    async def CreateProject(self, request: pb.CreateProjectRequest, context: Context) -> pb.CreateProjectResponse:
        created = await self._projects.create(request.name, request.description, _quotas(request.quotas))
        return pb.CreateProjectResponse(project=_project(created))

    async def ListProjects(self, request: pb.ListProjectsRequest, context: Context) -> pb.ListProjectsResponse:
        page = await self._projects.list_projects(messages.page_request(request))
        return pb.ListProjectsResponse(projects=map(_project, page.rows), next_page_token=page.next_token)

    async def GetProject(self, request: pb.GetProjectRequest, context: Context) -> pb.GetProjectResponse:
        project, used = await self._projects.get_with_used(request.name)
        answer = pb.GetProjectResponse(project=_project(project))
        answer.project.used.MergeFrom(pb.Used(**asdict(used)))
        return answer

    async def UpdateProject(self, request: pb.UpdateProjectRequest, context: Context) -> pb.UpdateProjectResponse:
        change = ProjectChange(
            description=request.description if request.HasField("description") else None,
            archived=request.archived if request.HasField("archived") else None,
            quotas=_quotas(request.quotas),
        )
        return pb.UpdateProjectResponse(project=_project(await self._projects.update(request.name, change)))

    async def NoteArtifact(self, request: pb.NoteArtifactRequest, context: Context) -> pb.NoteArtifactResponse:
        await self._projects.note_artifact(request.digest, request.size_bytes)
        return pb.NoteArtifactResponse()

    async def ListUsage(self, request: pb.ListUsageRequest, context: Context) -> pb.ListUsageResponse:
        query = UsageQuery(start_day=request.start_day, end_day=request.end_day, project=request.project)
        page = await self._usage.list_usage(query, messages.page_request(request))
        rows = [pb.UsageRecord(**{name: getattr(row, name) for name in _USAGE}) for row in page.rows]
        return pb.ListUsageResponse(usage=rows, next_page_token=page.next_token)

    async def ReportUsage(self, request: pb.ReportUsageRequest, context: Context) -> pb.ReportUsageResponse:
        lines = [UsageLine(**{name: getattr(item, name) for name in _USAGE if name != "day"}) for item in request.usage]
        allowances = await self._usage.report(request.batch_id, lines, request.projects)
        return pb.ReportUsageResponse(allowances=map(_allowance, allowances))


def _allowance(found: Allowance) -> pb.Allowance:
    return pb.Allowance(
        project=found.project.name,
        requests_per_minute=found.project.max_requests_per_minute,
        tokens_per_day=found.project.max_tokens_per_day,
        tokens_today=found.tokens_today,
    )


def _project(row: Project) -> pb.Project:
    return pb.Project(
        name=row.name,
        description=row.description,
        create_time=messages.timestamp(row.create_time),
        archive_time=messages.timestamp(row.archive_time),
        quotas=pb.Quotas(**{name.removeprefix("max_"): getattr(row, name) for name in QUOTAS}),
    )


def _quotas(message: pb.Quotas) -> dict[str, int]:
    """What is set, by column."""
    return {f"max_{field.name}": value for field, value in message.ListFields()}
