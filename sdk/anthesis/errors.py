"""What calls raise: the server's message, under the exception of its canonical gRPC code."""

import re
from typing import Any

import grpc


class AnthesisError(Exception):
    """A call failed. `code` is the canonical gRPC status; the message names the value and the remedy."""

    code = grpc.StatusCode.UNKNOWN


class InvalidArgumentError(AnthesisError):
    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(AnthesisError):
    code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(AnthesisError):
    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPreconditionError(AnthesisError):
    code = grpc.StatusCode.FAILED_PRECONDITION


class AbortedError(AnthesisError):
    code = grpc.StatusCode.ABORTED


class ResourceExhaustedError(AnthesisError):
    """`retry_after_s`: how long to wait before the next try, where the server knows."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    retry_after_s: float | None = None


class UnavailableError(AnthesisError):
    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceededError(AnthesisError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED


class DataLossError(AnthesisError):
    code = grpc.StatusCode.DATA_LOSS


class UnauthenticatedError(AnthesisError):
    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(AnthesisError):
    code = grpc.StatusCode.PERMISSION_DENIED


class CancelledError(AnthesisError):
    code = grpc.StatusCode.CANCELLED


_BY_CODE = {error.code: error for error in AnthesisError.__subclasses__()}


# gRPC's own words when nothing listens; they go on with the address of the last attempt.
_UNREACHABLE = re.compile(r"failed to connect to all addresses.*?(?:ipv[46]|dns):(?:///)?(\S+:\d+)")
_UNRESOLVED = re.compile(r"(?:errors resolving|DNS resolution failed for) (\S+?):? ")
_RETRY_PUSHBACK = "grpc-retry-pushback-ms"  # gRPC's own name (proposal A6)
_SAY_WHERE = "say where it is (ANTHESIS_GATEWAY_ADDRESS, ANTHESIS_REGISTRY_ADDRESS)"


def from_rpc(error: grpc.RpcError) -> AnthesisError:
    """The exception that stands for a failed gRPC call, sync or async."""
    code: grpc.StatusCode = error.code()
    details: str = error.details() or code.name
    if unreachable := _UNREACHABLE.search(details):
        details = f"nothing answers at {unreachable[1]}; start the platform (`make up`) or {_SAY_WHERE}"
    elif unresolved := _UNRESOLVED.search(details):
        details = f"the host of {unresolved[1]!r} has no address that can be found; {_SAY_WHERE}"
    raised = _BY_CODE.get(code, AnthesisError)(details)
    if isinstance(raised, ResourceExhaustedError):
        raised.retry_after_s = _retry_after_s(error)
    return raised


def _retry_after_s(error: grpc.RpcError) -> float | None:
    trailing: Any = error.trailing_metadata() or ()  # pairs, whatever grpc's stubs call them
    pushback = dict(trailing).get(_RETRY_PUSHBACK)
    return int(pushback) / 1000 if pushback else None
