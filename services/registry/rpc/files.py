"""FileService: messages in and out."""

from typing import Any

from anthesis.v1 import file_pb2 as pb
from anthesis.v1 import file_pb2_grpc
from anthesis.v1.registry_pb2 import DatasetFormat

from services.common.auth import current_principal
from services.registry import tables
from services.registry.files import FileQuery, Files, NewFile
from services.registry.rpc import messages

Context = Any


class FileRpc(file_pb2_grpc.FileServiceServicer):
    def __init__(self, files: Files) -> None:
        self._files = files

    async def CreateFile(self, request: pb.CreateFileRequest, context: Context) -> pb.CreateFileResponse:
        new = NewFile(
            filename=request.filename,
            purpose=request.purpose,
            digest=request.digest,
            created_by=current_principal().name,
            lifetime_s=request.lifetime_seconds if request.HasField("lifetime_seconds") else None,
            idempotency_key=request.idempotency_key,
        )
        return pb.CreateFileResponse(file=_file(await self._files.create(new)))

    async def GetFile(self, request: pb.GetFileRequest, context: Context) -> pb.GetFileResponse:
        return pb.GetFileResponse(file=_file(await self._files.get(current_principal(), request.id)))

    async def ListFiles(self, request: pb.ListFilesRequest, context: Context) -> pb.ListFilesResponse:
        query = FileQuery(purpose=request.purpose, after=request.after, oldest_first=request.oldest_first)
        page = await self._files.list_files(current_principal(), query, messages.page_request(request))
        return pb.ListFilesResponse(files=map(_file, page.rows), next_page_token=page.next_token)

    async def DeleteFile(self, request: pb.DeleteFileRequest, context: Context) -> pb.DeleteFileResponse:
        await self._files.delete(current_principal(), request.id)
        return pb.DeleteFileResponse()


def _file(row: tables.File) -> pb.File:
    return pb.File(
        id=row.id,
        filename=row.filename,
        purpose=row.purpose,
        digest=row.digest,
        size_bytes=row.size_bytes,
        format=DatasetFormat.Value(f"DATASET_FORMAT_{row.format or 'UNSPECIFIED'}"),
        num_rows=row.num_rows,
        longest_row_bytes=row.longest_row_bytes,
        created_by=row.created_by,
        create_time=messages.timestamp(row.create_time),
        expire_time=messages.timestamp(row.expire_time),
    )
