"""A call's events, as its reader sees them."""

from typing import cast

import pytest

from services.common.errors import ResourceExhausted, Unavailable
from services.inference.engine_client import Call, EngineClient
from services.inference.messages import Event, Refused, Token


class Engine:
    """Remembers what a call tells its engine."""

    def __init__(self) -> None:
        self.aborted: list[int] = []
        self.forgotten: list[int] = []

    def abort(self, request_id: int) -> None:
        self.aborted.append(request_id)

    def forget(self, request_id: int) -> None:
        self.forgotten.append(request_id)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def call(engine: Engine) -> Call:
    return Call(cast(EngineClient, engine), 7)


def token(number: int, finish: str | None = None) -> Token:
    return Token(7, number, finish=finish)


async def read(call: Call) -> list[list[Event]]:
    return [events async for events in call]


async def test_tokens_that_came_while_nobody_read_come_together(call: Call):
    for number in range(3):
        call.push(token(number))
    batches = aiter(call)
    assert [event.id for event in await anext(batches)] == [0, 1, 2]
    call.push(token(3, "STOP"))
    assert [event.id for event in await anext(batches)] == [3]
    with pytest.raises(StopAsyncIteration):
        await anext(batches)


async def test_a_finished_call_is_forgotten_and_not_aborted(call: Call, engine: Engine):
    call.push(token(0, "LENGTH"))
    call.close()
    assert await read(call) == [[token(0, "LENGTH")]]
    assert engine.forgotten == [7]
    assert engine.aborted == []


async def test_closing_an_unfinished_call_aborts_it_once(call: Call, engine: Engine):
    call.push(token(0))
    call.close()
    call.close()
    assert engine.aborted == [7]
    assert await read(call) == [[token(0)]]


async def test_a_refusal_is_raised(call: Call):
    call.push(Refused(7, "256 requests wait"))
    with pytest.raises(ResourceExhausted, match="256 requests wait"):
        await read(call)


async def test_what_came_before_a_failure_is_read_first(call: Call):
    call.push(token(0))
    call.fail(Unavailable("the engine died"))
    batches = aiter(call)
    assert await anext(batches) == [token(0)]
    with pytest.raises(Unavailable):
        await anext(batches)
