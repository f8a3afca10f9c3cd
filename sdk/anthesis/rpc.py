"""gRPC calls that raise anthesis.errors."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import grpc

from anthesis.errors import from_rpc

PAGE_SIZE = 200

# grpc.health.v1 by hand, as its package refuses protobuf 6: the empty request asks for the whole server; in the answer,
# field 1 holds the status, and 1 is SERVING.
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_REQUEST, HEALTH_SERVING = b"", b"\x08\x01"

T = TypeVar("T")


class _PageRequest(Protocol):
    page_token: str


class _Page(Protocol):
    next_page_token: str


Request = TypeVar("Request", bound=_PageRequest)
Page = TypeVar("Page", bound=_Page)


async def unary(call: Awaitable[T]) -> T:
    """Await a call that has one response."""
    try:
        return await call
    except grpc.RpcError as error:
        raise from_rpc(error) from None


@asynccontextmanager
async def stream(call: "grpc.aio.UnaryStreamCall[Any, T]") -> AsyncGenerator[AsyncIterator[T], None]:
    """The responses of a call that is cancelled, at once, when the block is left before their end."""
    try:
        yield call.__aiter__()
    except grpc.RpcError as error:
        raise from_rpc(error) from None
    finally:
        call.cancel()


async def pages(method: Callable[[Request], Awaitable[Page]], request: Request) -> AsyncIterator[Page]:
    """Yield every page of a listing that begins with `request`."""
    while True:
        page = await unary(method(request))
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
