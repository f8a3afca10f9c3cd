"""Routes of OpenAI's files and fine-tuning jobs."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import StreamingResponse

from services.common.auth import bearer_key, current_principal
from services.gateway.fine_tuning_service import Caller, FineTuning
from services.gateway.generation import InvalidParameter
from services.gateway.openai_files import FileForm, deleted_json, file_json, list_json, named_list_json
from services.gateway.openai_fine_tuning import JobBody, checkpoints_json, event_cursor, event_json, job_json

MAX_FILE_BYTES = 512 << 20  # of a form with its file, as OpenAI has it
MAX_FIELD_BYTES = 4096
UPLOAD = "POST /v1/files"
_ID = re.compile(r"(file|job)-[0-9a-f-]{1,60}")
_METADATA = re.compile(r"metadata\[(.{1,64})\]")
Json = dict[str, Any]
After = Annotated[str, Query()]
IdempotencyKey = Annotated[str, Header()]


def add_fine_tuning(app: FastAPI, service: FineTuning) -> None:
    _add_files(app, service)
    _add_jobs(app, service)


def _add_files(app: FastAPI, service: FineTuning) -> None:
    @app.post("/v1/files", max_body_size=MAX_FILE_BYTES)
    async def create_file(request: Request, idempotency_key: IdempotencyKey = "") -> Json:
        async with request.form(max_files=1, max_fields=8, max_part_size=MAX_FIELD_BYTES) as sent:
            form = FileForm.of(sent)
            file = await service.create_file(
                _caller(request), form.file.filename or "", form.file.file, form.lifetime_s, idempotency_key
            )
        return file_json(file)

    @app.get("/v1/files")
    async def list_files(
        request: Request,
        purpose: str = "",
        after: After = "",
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        order: Literal["asc", "desc"] = "desc",
    ) -> Json:
        files, has_more = await service.list_files(
            _caller(request), purpose, _id("after", after), limit, oldest_first=order == "asc"
        )
        return named_list_json([file_json(file) for file in files], has_more=has_more)

    @app.get("/v1/files/{file_id}")
    async def get_file(request: Request, file_id: str) -> Json:
        return file_json(await service.get_file(_caller(request), file_id))

    @app.get("/v1/files/{file_id}/content")
    async def get_content(request: Request, file_id: str) -> StreamingResponse:
        file = await service.get_file(_caller(request), file_id)
        chunks = service.read_file(_caller(request), file)
        first = await anext(chunks, b"")  # here, so that an error before it has a status of its own
        headers = {
            "content-length": str(file.size_bytes),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename)}",
        }
        return StreamingResponse(_joined(first, chunks), media_type="application/octet-stream", headers=headers)

    @app.delete("/v1/files/{file_id}")
    async def delete_file(request: Request, file_id: str) -> Json:
        await service.delete_file(_caller(request), file_id)
        return deleted_json(file_id)


def _add_jobs(app: FastAPI, service: FineTuning) -> None:
    @app.post("/v1/fine_tuning/jobs")
    async def create_job(request: Request, body: JobBody, idempotency_key: IdempotencyKey = "") -> Json:
        return job_json(await service.create_job(_caller(request), body.to_new(idempotency_key)))

    @app.get("/v1/fine_tuning/jobs")
    async def list_jobs(request: Request, after: After = "", limit: Annotated[int, Query(ge=1, le=100)] = 20) -> Json:
        jobs, has_more = await service.list_jobs(_caller(request), _id("after", after), limit, _metadata(request))
        return list_json([job_json(job) for job in jobs], has_more=has_more)

    @app.get("/v1/fine_tuning/jobs/{job_id}")
    async def get_job(request: Request, job_id: str) -> Json:
        return job_json(await service.get_job(_caller(request), job_id))

    @app.post("/v1/fine_tuning/jobs/{job_id}/cancel")
    async def cancel_job(request: Request, job_id: str) -> Json:
        return job_json(await service.cancel_job(_caller(request), job_id))

    @app.get("/v1/fine_tuning/jobs/{job_id}/events")
    async def list_events(
        request: Request, job_id: str, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> Json:
        before = event_cursor(job_id, after)
        job, (events, has_more) = await service.list_events(_caller(request), job_id, before, limit)
        return list_json([event_json(job, event) for event in events], has_more=has_more)

    @app.get("/v1/fine_tuning/jobs/{job_id}/checkpoints")
    async def list_checkpoints(
        request: Request, job_id: str, after: After = "", limit: Annotated[int, Query(ge=1, le=100)] = 10
    ) -> Json:
        found = checkpoints_json(await service.get_job(_caller(request), job_id))
        return named_list_json([] if after else found, has_more=False)  # there is one at most


def _caller(request: Request) -> Caller:
    return Caller(current_principal(), bearer_key(request.headers.get("authorization")))


def _id(param: str, value: str) -> str:
    """Raises InvalidParameter."""
    if value and not _ID.fullmatch(value):
        raise InvalidParameter(param, f"{param}={value[:100]!r} is no id; send the last id of the page before")
    return value


def _metadata(request: Request) -> dict[str, str]:
    """The filter metadata[key]=value."""
    pairs = ((_METADATA.fullmatch(name), value) for name, value in request.query_params.items())
    return {found[1]: value for found, value in pairs if found}


async def _joined(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        yield first
        async for chunk in rest:
            yield chunk
