"""What a request asks a list for."""

from typing import Any

from anthesis.v1 import job_pb2, registry_pb2

from services.registry.rpc.messages import enum_name, read_time
from services.registry.search import JobQuery, ModelQuery, VersionQuery


def of_models(request: registry_pb2.ListModelsRequest) -> ModelQuery:
    return ModelQuery(
        licence=request.licence,
        language=request.language,
        tag=request.tag,
        base_model=request.base_model,
        ready=request.ready,
        deleted=request.show_deleted,
        **_common(request),
    )


def of_versions(request: registry_pb2.ListModelVersionsRequest) -> VersionQuery:
    return VersionQuery(
        licence=request.licence,
        language=request.language,
        tag=request.tag,
        parent=request.parent,
        dataset=request.dataset,
        deleted=request.show_deleted,
        **_common(request),
    )


def of_jobs(request: job_pb2.ListJobsRequest) -> JobQuery:
    return JobQuery(
        output_model=request.output_model,
        base=request.base,
        dataset=request.dataset,
        fine_tuning=request.fine_tuning,
        after=request.after,
        **_common(request),
    )


def _common(request: Any) -> dict[str, Any]:
    """Raises InvalidArgument for a time that no calendar has."""
    times = {name: f"{name}_time" for name in ("start", "end")}
    return {
        "text": request.text,
        "created_by": request.created_by,
        "order": enum_name(registry_pb2.ListOrder, "LIST_ORDER_", request.order),
    } | {name: read_time(getattr(request, field), field) for name, field in times.items() if request.HasField(field)}
