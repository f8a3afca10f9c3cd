"""OpenAI's completions over real HTTP, with the `openai` client and by hand."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest

from tests.support.gateway_backends import USER_KEY, VERSION, Backends, running_gateway

END_ID = 2


@pytest.fixture
async def backends(tmp_path: Path) -> AsyncIterator[Backends]:
    async with running_gateway(tmp_path) as running:
        yield running


@pytest.fixture
async def client(backends: Backends) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{backends.http_url}/v1", api_key=USER_KEY, max_retries=0) as opened:
        yield opened


@pytest.fixture
async def http(backends: Backends) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {USER_KEY}"}
    async with httpx.AsyncClient(base_url=backends.http_url, headers=headers, timeout=30) as opened:
        yield opened


async def refused(http: httpx.AsyncClient, **body: Any) -> tuple[int, dict[str, Any]]:
    answer = await http.post("/v1/completions", json={"model": "demo", "prompt": "Hello", **body})
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error


async def test_a_completion_has_text_reason_usage_and_the_version(backends: Backends, client) -> None:
    backends.script(backends.ids(" world 人"), [END_ID])
    completion = await client.completions.create(model="demo", prompt="Hello")
    (choice,) = completion.choices
    assert choice.text == " world 人"
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert completion.model == VERSION
    assert completion.object == "text_completion"
    assert completion.id.startswith("cmpl-")
    assert completion.usage.prompt_tokens == len(backends.ids("Hello"))
    assert completion.usage.completion_tokens == len(backends.ids(" world 人")) + 1
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


async def test_a_stream_gives_the_text_of_the_whole(backends: Backends, client) -> None:
    backends.script(*([token_id] for token_id in backends.byte_ids("é 人")), [END_ID])
    stream = await client.completions.create(
        model="demo", prompt="Hello", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].text for chunk in chunks[:-1]] == ["é", " ", "人", ""]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 7
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_is_events_ended_by_done(backends: Backends, http) -> None:
    backends.script(backends.ids("ok"))
    answer = await http.post("/v1/completions", json={"model": "demo", "prompt": "x", "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert all("usage" not in json.loads(event.removeprefix("data: ")) for event in events)


async def test_defaults_are_openais(backends: Backends, client) -> None:
    backends.script([5])
    await client.completions.create(model="demo", prompt="Hello")
    sampling = backends.worker.requests[0].sampling
    assert sampling.max_tokens == 16
    assert not sampling.HasField("temperature")  # the worker's default is 1, as OpenAI's


async def test_settings_reach_the_worker_also_those_that_openai_lacks(backends: Backends, client) -> None:
    backends.script([5])
    await client.completions.create(
        model="demo",
        prompt="Hello",
        max_tokens=3,
        temperature=0,
        top_p=0.5,
        seed=7,
        user="someone",
        extra_body={"top_k": 9, "repetition_penalty": 1.5},
    )
    sampling = backends.worker.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (3, 0, 0.5, 7)
    assert (sampling.top_k, sampling.repetition_penalty) == (9, 1.5)


@pytest.mark.parametrize("stop", ["END", ["END", "never"]])
async def test_stop_strings_end_the_text(backends: Backends, client, stop) -> None:
    backends.script(backends.ids("one E"), backends.ids("ND two"))
    completion = await client.completions.create(model="demo", prompt="Hello", stop=stop)
    assert completion.choices[0].text == "one "
    assert completion.choices[0].finish_reason == "stop"


async def test_prompts_may_be_texts_or_ids_alone_or_in_lists(backends: Backends, client) -> None:
    backends.script([5])
    hello, other = backends.ids("Hello"), [7, 8]
    for prompt, sent in (("Hello", [hello]), (["Hello", "a"], [hello, backends.ids("a")]), (hello, [hello])):
        completion = await client.completions.create(model="demo", prompt=prompt)
        assert sorted(list(request.prompt_ids) for request in backends.worker.requests) == sorted(sent)
        assert [choice.index for choice in completion.choices] == list(range(len(sent)))
        backends.worker.requests.clear()
    completion = await client.completions.create(model="demo", prompt=[hello, other])
    assert sorted(list(request.prompt_ids) for request in backends.worker.requests) == sorted([hello, other])


async def test_each_prompt_has_n_choices_with_seeds_of_their_own(backends: Backends, client) -> None:
    backends.script(backends.ids("ok"))
    completion = await client.completions.create(model="demo", prompt=["a", "b"], n=3, seed=10, echo=True)
    assert [choice.text for choice in completion.choices] == ["aok"] * 3 + ["bok"] * 3
    assert sorted(request.sampling.seed for request in backends.worker.requests) == [10, 10, 11, 11, 12, 12]
    assert completion.usage.prompt_tokens == len(backends.ids("a")) + len(backends.ids("b"))


async def test_logprobs_have_openais_legacy_shape(backends: Backends, client) -> None:
    cut = backends.byte_ids("é")
    backends.script([*backends.ids("ok"), *cut])
    completion = await client.completions.create(model="demo", prompt="Hello", logprobs=2)
    logprobs = completion.choices[0].logprobs
    num_ok = len(backends.ids("ok"))
    assert "".join(logprobs.tokens[:num_ok]) == "ok"
    assert logprobs.tokens[num_ok:] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert logprobs.token_logprobs == [-0.5] * (num_ok + 2)
    assert logprobs.text_offset[-2:] == [2, 2]
    first = logprobs.top_logprobs[0]
    assert first[logprobs.tokens[0]] == -0.5
    assert len(first) == 3


async def test_zero_logprobs_give_the_drawn_token_alone(backends: Backends, client) -> None:
    backends.script([backends.ids("o")[0]])
    completion = await client.completions.create(model="demo", prompt="Hello", logprobs=0)
    assert completion.choices[0].logprobs.top_logprobs == [{"o": -0.5}]


async def test_echo_with_logprobs_scores_the_prompt_and_draws_nothing_when_so_asked(backends, client) -> None:
    prompt = "Hello 人 world"
    ids = backends.ids(prompt)
    completion = await client.completions.create(model="demo", prompt=prompt, echo=True, logprobs=1, max_tokens=0)
    choice = completion.choices[0]
    assert not backends.worker.requests
    assert choice.text == prompt
    assert choice.finish_reason == "length"
    assert choice.logprobs.token_logprobs == [None, *(-token_id / 1024 for token_id in ids[1:])]
    assert choice.logprobs.top_logprobs[0] is None
    likeliest = {backends.vocabulary.tokens[4].decode(): -4 / 1024}
    assert all(top.items() >= likeliest.items() for top in choice.logprobs.top_logprobs[1:])
    assert choice.logprobs.text_offset[0] == 0
    assert [prompt[offset] for offset in choice.logprobs.text_offset] == [
        prompt[span[0]] for span in backends.tokenizer.encode([prompt], with_offsets=True)[0].char_offsets
    ]
    assert completion.usage.completion_tokens == 0


async def test_echo_with_logprobs_on_token_ids_and_one_new_token_is_what_lm_eval_sends(backends, client) -> None:
    context, continuation = backends.ids("Hello"), backends.ids(" world")
    backends.script([backends.ids("!")[0]])
    completion = await client.completions.create(
        model="demo",
        prompt=[context + continuation, context],
        echo=True,
        logprobs=1,
        max_tokens=1,
        temperature=0,
        seed=1234,
    )
    first, second = completion.choices
    assert sum(first.logprobs.token_logprobs[len(context) : -1]) == pytest.approx(-sum(continuation) / 1024)
    assert first.text == "Hello world!"
    assert second.text == "Hello!"
    assert first.logprobs.text_offset[-1] == len("Hello world")
    assert len(backends.worker.scored) == 1


@pytest.mark.parametrize(
    ("code", "status", "openai_code"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "rate_limit_exceeded"),
        (grpc.StatusCode.UNAVAILABLE, 503, "service_unavailable"),
        (grpc.StatusCode.INTERNAL, 500, None),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_the_workers_errors_have_a_status_of_their_own(
    backends: Backends, http, code, status: int, openai_code: str | None, stream: bool
) -> None:
    backends.worker.fail_before = (code, "as told")
    got, error = await refused(http, stream=stream)
    assert (got, error["code"]) == (status, openai_code)
    assert "as told" in error["message"]


async def test_no_ready_worker_is_503_with_the_remedy(backends: Backends, http) -> None:
    backends.registry.workers.clear()
    status, error = await refused(http)
    assert status == 503
    assert "anthesis deploy" in error["message"]


async def test_an_error_in_the_middle_of_a_stream_is_its_last_event(backends: Backends, client) -> None:
    backends.script(backends.ids("first"), backends.ids(" second"))
    backends.worker.fail_after = (grpc.StatusCode.UNAVAILABLE, "the engine died")
    stream = await client.completions.create(model="demo", prompt="Hello", stream=True)
    texts = []
    with pytest.raises(openai.APIError, match="the engine died"):
        async for chunk in stream:
            texts.append(chunk.choices[0].text)
    assert texts == ["first", " second"]


async def test_calls_under_way_end_whole_when_the_gateway_is_told_to_stop(backends: Backends, client) -> None:
    backends.worker.pause_after = 1
    backends.script(backends.ids("first"), backends.ids(" second"))
    whole = asyncio.create_task(client.completions.create(model="demo", prompt="Hello"))
    stream = await client.completions.create(model="demo", prompt="Hello", stream=True)
    chunks = aiter(stream)
    texts = [(await anext(chunks)).choices[0].text]
    await asyncio.wait_for(backends.worker.paused.wait(), 10)
    stopping = asyncio.create_task(backends.gateway.stop())
    await asyncio.sleep(0)
    backends.worker.resume.set()
    texts += [chunk.choices[0].text async for chunk in chunks]
    assert texts == ["first", " second"]
    assert (await whole).choices[0].text == "first second"
    await stopping
    with pytest.raises(openai.APIConnectionError):
        await client.completions.create(model="demo", prompt="Hello")


async def test_a_client_that_leaves_a_stream_cancels_every_generation(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as backends:
        backends.worker.pause_after = 1
        backends.script(backends.ids("first"), backends.ids("never"))
        async with openai.AsyncOpenAI(base_url=f"{backends.http_url}/v1", api_key=USER_KEY) as client:
            stream = await client.completions.create(model="demo", prompt="Hello", stream=True)
            assert (await anext(aiter(stream))).choices[0].text == "first"
            await stream.close()
            await asyncio.wait_for(backends.worker.cancelled.wait(), 10)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_before_the_answer_cancels_the_generation(backends, http, stream: bool) -> None:
    backends.worker.pause_after = 0
    backends.script([5])
    body = {"model": "demo", "prompt": "Hello", "stream": stream}
    asking = asyncio.create_task(http.post("/v1/completions", json=body))
    await asyncio.wait_for(backends.worker.paused.wait(), 10)
    asking.cancel()
    await asyncio.wait_for(backends.worker.cancelled.wait(), 10)
