"""Errors of the services behind the gateway, as the gateway's callers see them."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from services.common import errors
from services.common.server import RETRY_PUSHBACK

# What the caller can act on keeps its code and message. The rest is trouble between services.
_PASSED_ON = {
    kind.status: kind
    for kind in (
        errors.InvalidArgument,
        errors.NotFound,
        errors.FailedPrecondition,
        errors.DataLoss,
    )
}
_FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNIMPLEMENTED}


_OF_THE_KEY = {kind.status: kind for kind in (errors.Unauthenticated, errors.PermissionDenied)}


@contextmanager
def upstream(service: str, *, callers_deadline: bool = False, callers_key: bool = False) -> Iterator[None]:
    """Turn a failed call into a domain error that names `service` ("the tokenizer service at host:port").

    `callers_deadline`, `callers_key`: the call had those of whoever called the gateway, and not the gateway's own.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if callers_key and (kind := _OF_THE_KEY.get(error.code())):
            raise kind(error.details()) from error
        raise _translate(service, error, callers_deadline) from error


def _translate(service: str, error: grpc.aio.AioRpcError, callers_deadline: bool) -> errors.DomainError:
    code, details = error.code(), error.details() or ""
    if code in _PASSED_ON:
        return _PASSED_ON[code](details)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.ResourceExhausted(details, retry_delay_s=_retry_delay_s(error))
    if code in _FAULTS:
        return errors.DomainError(f"{service} failed ({code.name}): {details}")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return errors.Unavailable(f"{service} refuses the gateway's key ({details}); run services.registry.bootstrap")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED and callers_deadline:
        return errors.DeadlineExceeded("the call's deadline passed before the answer was whole; allow it more time")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.Unavailable(f"{service} did not answer in time; try again")
    return errors.Unavailable(f"{service} is unavailable: {details}; try again")


def _retry_delay_s(error: grpc.aio.AioRpcError) -> float | None:
    pushback = dict(error.trailing_metadata() or ()).get(RETRY_PUSHBACK)
    return int(pushback) / 1000 if pushback else None
