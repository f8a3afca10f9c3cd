"""Server-sent events of a streamed completion."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from services.common.errors import DomainError
from services.gateway.generation import Piece
from services.gateway.openai_completions import CompletionWriter
from services.gateway.openai_errors import domain_error_json, error_json

log = logging.getLogger(__name__)


async def events(
    pieces: AsyncGenerator[Piece, None], writer: CompletionWriter, *, with_usage: bool
) -> AsyncGenerator[str, None]:
    """A chunk per piece, the usage if asked for, and the mark of the end."""
    async with aclosing(pieces):
        async for piece in pieces:
            yield _event(writer.chunk(piece, with_usage=with_usage))
    if with_usage:
        yield _event(writer.usage_chunk())
    yield "data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Sends `first`, then the rest; closes `stream`, and so the generation, when the client goes away."""

    def __init__(self, first: str, stream: AsyncGenerator[str, None], headers: Mapping[str, str]) -> None:
        super().__init__(_from_first(first, stream), headers=headers, media_type="text/event-stream")
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._stream):
            await super().__call__(scope, receive, send)


async def _from_first(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    """The status line is sent by now: an error becomes the last event, as OpenAI's clients expect it."""
    try:
        yield first
        async for event in rest:
            yield event
    except DomainError as error:
        yield _event(domain_error_json(error)[1])
    except Exception:
        log.exception("a streamed completion failed")
        yield _event(error_json("internal error; the gateway's log has the traceback", "server_error"))


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
