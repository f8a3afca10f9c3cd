"""OpenAI's errors: statuses, types, codes and their JSON. Source: OpenAI's API reference, Error codes."""

import math
from typing import Any

import grpc

from services.common.errors import DomainError, NotFound, ResourceExhausted
from services.gateway.fine_tuning import NoSuchObject
from services.gateway.generation import InvalidParameter
from services.gateway.licence_client import LicenceNotAccepted
from services.gateway.metering import QuotaExceeded

Json = dict[str, Any]
_PARAMS = {"stop_ids": "stop_token_ids"}  # the contract's names and those of the HTTP body
_STATUS = {  # canonical code -> HTTP status, OpenAI's type, OpenAI's code
    grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid_request_error", None),
    grpc.StatusCode.FAILED_PRECONDITION: (400, "invalid_request_error", None),
    grpc.StatusCode.UNAUTHENTICATED: (401, "invalid_request_error", "invalid_api_key"),
    grpc.StatusCode.PERMISSION_DENIED: (403, "invalid_request_error", "permission_denied"),
    grpc.StatusCode.NOT_FOUND: (404, "invalid_request_error", "model_not_found"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "rate_limit_error", "rate_limit_exceeded"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (504, "server_error", "timeout"),
    grpc.StatusCode.UNAVAILABLE: (503, "server_error", "service_unavailable"),
}


def error_json(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> Json:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def domain_error_json(error: DomainError) -> tuple[int, Json]:
    """HTTP status and body."""
    status, kind, code = _STATUS.get(error.status, (500, "server_error", None))
    param = "model" if isinstance(error, NotFound) else None
    if isinstance(error, NoSuchObject):
        param, code = error.param, error.code
    if isinstance(error, LicenceNotAccepted):  # OpenAI's own words for what a key may not use yet are a 403
        status, param, code = 403, "model", "licence_not_accepted"
    if isinstance(error, QuotaExceeded):
        kind = code = "insufficient_quota"
    if isinstance(error, InvalidParameter):
        param, code = _PARAMS.get(error.param, error.param), error.code
    return status, error_json(str(error), kind, param=param, code=code)


def retry_after(error: DomainError) -> dict[str, str]:
    """The header that says when to try again, in whole seconds (RFC 9110, section 10.2.3), where that is known."""
    if not isinstance(error, ResourceExhausted) or error.retry_delay_s is None:
        return {}
    return {"retry-after": str(math.ceil(error.retry_delay_s))}
