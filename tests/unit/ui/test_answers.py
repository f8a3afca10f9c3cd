"""Streams and the answers made of them, over a real gRPC call."""

import time

import grpc
import pytest
from anthesis import AnthesisError, SamplingParams, Settings
from anthesis.errors import NotFoundError
from anthesis.v1.generation_pb2 import GenerateResponse

from tests.support.scripted_gateway import running_scripted_gateway
from ui.answers import Answer, stream_answers
from ui.languages import LANGUAGES
from ui.platform import Servable
from ui.streams import Stream, open_client

SAMPLING = SamplingParams(max_tokens=8)


@pytest.fixture
def gateway_and_client():
    with running_scripted_gateway() as (gateway, address):
        yield gateway, open_client(Settings(api_key="key", gateway_address=address))


def answer(model: str = "seedling") -> Answer:
    return Answer(model=Servable(model, f"{model}@1"), prompt="All human", language=LANGUAGES[0])


def test_an_answer_grows_token_by_token_to_its_end(gateway_and_client):
    gateway, client = gateway_and_client
    gateway.script, gateway.token_s = [" be", "ings", " are", " born"], 0.1
    seen = []
    mine = answer()
    stream_answers(client, [mine], SAMPLING, lambda a: seen.append(a.text))
    assert mine.text == " beings are born"
    assert len({text for text in seen if text}) > 1, "it was drawn only at the end"
    assert mine.num_tokens == 4
    assert mine.num_prompt_tokens == 3
    assert mine.version == "seedling@1"
    assert mine.ending == "came to its end"
    assert 5 < mine.tokens_per_second < 11


def test_two_models_answer_side_by_side(gateway_and_client):
    gateway, client = gateway_and_client
    gateway.script, gateway.token_s = ["a", "b", "c", "d"], 0.1
    both = [answer("seedling"), answer("seedling-z")]
    began = time.monotonic()
    stream_answers(client, both, SAMPLING, lambda a: None)
    assert time.monotonic() - began < 0.75, "one waited for the other"
    assert {request.model for request in gateway.requests} == {"seedling", "seedling-z"}
    assert [a.text for a in both] == ["abcd", "abcd"]


def test_stopping_cancels_a_call_that_is_silent(gateway_and_client):
    gateway, client = gateway_and_client
    gateway.script, gateway.silent = ["one"], True

    class StopButton(BaseException):
        """As Streamlit's rerun: raised where something is drawn."""

    def draw(a: Answer) -> None:
        if gateway.said_all.is_set() and a.text:
            raise StopButton

    mine = answer()
    with pytest.raises(StopButton):
        stream_answers(client, [mine], SAMPLING, draw)
    assert gateway.cancelled.wait(5), "the gateway still generates"
    mine.stopped = True
    assert (mine.text, mine.ending) == ("one", "stopped by you")


def test_an_answer_marked_as_stopped_ends_its_call_without_an_exception(gateway_and_client):
    gateway, client = gateway_and_client
    gateway.script, gateway.silent = ["one"], True
    mine = answer()

    def draw(a: Answer) -> None:
        a.stopped = bool(a.text)

    stream_answers(client, [mine], SAMPLING, draw)
    assert gateway.cancelled.wait(5), "the gateway still generates"
    assert (mine.text, mine.ending) == ("one", "stopped by you")


def test_a_failed_call_is_kept_with_the_answer(gateway_and_client):
    gateway, client = gateway_and_client
    gateway.error = (grpc.StatusCode.NOT_FOUND, "no model 'seedlink'; did you mean 'seedling'?")
    mine = answer()
    stream_answers(client, [mine], SAMPLING, lambda a: None)
    assert isinstance(mine.error, NotFoundError)
    assert mine.ending == "failed"


def test_items_that_came_before_an_error_are_not_lost():
    async def two_then_fail():
        yield 1
        yield 2
        raise AnthesisError("late")

    with Stream(two_then_fail) as stream:
        taken = [item for _, item in stream.take(5)]
        while len(taken) < 2:
            taken += [item for _, item in stream.take(5)]
        with pytest.raises(AnthesisError, match="late"):
            stream.take(5)
    assert taken == [1, 2]


def test_draining_returns_when_nothing_more_comes():
    async def one_then_silence():
        import asyncio

        yield GenerateResponse(text="x")
        await asyncio.sleep(60)

    began = time.monotonic()
    with Stream(one_then_silence) as stream:
        assert [item.text for item in stream.drain(quiet_s=0.1, at_most_s=5)] == ["x"]
    assert time.monotonic() - began < 3
