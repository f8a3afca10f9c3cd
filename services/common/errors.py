"""Errors of the domain. The server's interceptor maps each to its canonical gRPC status; nothing else does.

A message names what was wrong, its value and the remedy: it is shown to users as it is.
"""

import grpc


class DomainError(Exception):
    """Base of what a use case raises for its caller; `status` is the canonical code it becomes."""

    status = grpc.StatusCode.UNKNOWN


class InvalidArgument(DomainError):
    status = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(DomainError):
    status = grpc.StatusCode.NOT_FOUND


class AlreadyExists(DomainError):
    status = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(DomainError):
    status = grpc.StatusCode.FAILED_PRECONDITION


class Aborted(DomainError):
    status = grpc.StatusCode.ABORTED


class ResourceExhausted(DomainError):
    """`retry_delay_s`: how long to wait before the next try, where that is known (grpc-retry-pushback-ms)."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, *, retry_delay_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_delay_s = retry_delay_s


class DeadlineExceeded(DomainError):
    status = grpc.StatusCode.DEADLINE_EXCEEDED


class Unavailable(DomainError):
    status = grpc.StatusCode.UNAVAILABLE


class DataLoss(DomainError):
    status = grpc.StatusCode.DATA_LOSS


class Unauthenticated(DomainError):
    status = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(DomainError):
    status = grpc.StatusCode.PERMISSION_DENIED
