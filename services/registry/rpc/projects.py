"""ProjectService: messages in and out."""

from dataclasses import asdict
from typing import Any

from anthesis.v1 import project_pb2 as pb
from anthesis.v1 import project_pb2_grpc

from services.registry.projects.service import QUOTAS, ProjectChange, Projects
from services.registry.projects.tables import Project
from services.registry.rpc import messages

Context = Any


class ProjectRpc(project_pb2_grpc.ProjectServiceServicer):
    def __init__(self, projects: Projects) -> None:
        self._projects = projects

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
