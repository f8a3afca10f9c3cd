"""A call's events, as its reader sees them."""

from typing import cast

import pytest

from services.common.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable
from services.inference.engine_client import Call, EngineClient
from services.inference.messages import Event, PromptLogprobs, Refused, Token


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


async def test_a_call_of_several_choices_ends_with_the_last_of_them(engine: Engine):
    call = Call(cast(EngineClient, engine), 7, num_choices=2)
    call.push(token(0, "STOP"))
    assert engine.forgotten == []
    call.push(Token(7, 1, finish="LENGTH", choice=1))
    assert engine.forgotten == [7]
    assert [event.choice for events in await read(call) for event in events] == [0, 1]


async def test_log_probabilities_of_the_prompt_end_nothing(call: Call, engine: Engine):
    call.push(PromptLogprobs(7, [-1.0], [[]]))
    assert engine.forgotten == []
    call.push(token(0, "STOP"))
    assert len((await read(call))[0]) == 2


async def test_a_refusal_says_when_to_try_again(call: Call):
    call.push(Refused(7, "256 requests wait", "RESOURCE_EXHAUSTED", 1.5))
    with pytest.raises(ResourceExhausted) as caught:
        await read(call)
    assert caught.value.retry_delay_s == 1.5


@pytest.mark.parametrize(
    ("status", "error"), [("DEADLINE_EXCEEDED", DeadlineExceeded), ("INVALID_ARGUMENT", InvalidArgument)]
)
async def test_a_request_that_the_engine_drops_fails_with_its_status(call: Call, status: str, error: type[Exception]):
    call.push(Refused(7, "too late, or too long", status))  # type: ignore[arg-type]
    with pytest.raises(error, match="too late, or too long"):
        await read(call)


async def test_what_came_before_a_failure_is_read_first(call: Call):
    call.push(token(0))
    call.fail(Unavailable("the engine died"))
    batches = aiter(call)
    assert await anext(batches) == [token(0)]
    with pytest.raises(Unavailable):
        await anext(batches)
